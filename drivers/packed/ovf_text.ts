/**
 * The OVF descriptor of a new appliance.
 *
 * @module
 */
import { escaped } from "./ovf.ts";

/** The content of the descriptor. */
export interface Plan {
  readonly name: string;
  /** The name of the disk's file in the archive. */
  readonly diskName: string;
  /** Bytes of the disk. */
  readonly capacity: number;
  readonly adapterType: string;
  readonly hwVersion: number;
  readonly cpus: number;
  /** MiB. */
  readonly memory: number;
}

const SCHEMAS = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";

/** CIM resource types. */
const RESOURCE = { cpu: 3, memory: 4, ide: 5, scsi: 6, disk: 17 };

/** An item of virtual hardware: its elements in order. */
type Item = readonly (readonly [name: string, value: string | number])[];

/** Digits of the largest size. */
const SIZE_DIGITS = 16;

/**
 * The text, whose length does not depend on `size`.
 *
 * @param size Bytes of the disk's file.
 */
export function descriptorOf(
  { name, diskName, capacity, adapterType, hwVersion, cpus, memory }: Plan,
  size: number,
): Uint8Array<ArrayBuffer> {
  const isIde = adapterType === "ide";
  const controller: Item = [
    ["Address", 0],
    ["ElementName", isIde ? "IDE controller 0" : "SCSI controller 0"],
    ["InstanceID", 3],
    ...(isIde ? [] : [["ResourceSubType", adapterType] as const]),
    ["ResourceType", isIde ? RESOURCE.ide : RESOURCE.scsi],
  ];
  const items: Item[] = [
    [
      ["AllocationUnits", "hertz * 10^6"],
      ["ElementName", `${cpus} virtual CPU(s)`],
      ["InstanceID", 1],
      ["ResourceType", RESOURCE.cpu],
      ["VirtualQuantity", cpus],
    ],
    [
      ["AllocationUnits", "byte * 2^20"],
      ["ElementName", `${memory}MB of memory`],
      ["InstanceID", 2],
      ["ResourceType", RESOURCE.memory],
      ["VirtualQuantity", memory],
    ],
    controller,
    [
      ["AddressOnParent", 0],
      ["ElementName", "Hard disk 1"],
      ["HostResource", "ovf:/disk/vmdisk1"],
      ["InstanceID", 4],
      ["Parent", 3],
      ["ResourceType", RESOURCE.disk],
    ],
  ];
  const called = escaped(name);
  // XML permits trailing spaces. Leading zeroes would be octal to some
  // programs.
  const filler = " ".repeat(SIZE_DIGITS - `${size}`.length);
  return new TextEncoder().encode(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:rasd="${SCHEMAS}CIM_ResourceAllocationSettingData" \
xmlns:vssd="${SCHEMAS}CIM_VirtualSystemSettingData" \
xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:id="file1" ovf:href="${escaped(diskName)}" ovf:size="${size}"/>
  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
    <Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" \
ovf:capacity="${capacity}" ovf:capacityAllocationUnits="byte" \
ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <VirtualSystem ovf:id="${called}">
    <Info>A virtual machine</Info>
    <Name>${called}</Name>
    <OperatingSystemSection ovf:id="1" vmw:osType="otherGuest64">
      <Info>The kind of installed guest operating system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>${called}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-${
    `${hwVersion}`.padStart(2, "0")
  }</vssd:VirtualSystemType>
      </System>
${items.map(itemText).join("")}\
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>${filler}
`);
}

function itemText(item: Item): string {
  const lines = item.map(([name, value]) =>
    `        <rasd:${name}>${escaped(`${value}`)}</rasd:${name}>\n`
  );
  return `      <Item>\n${lines.join("")}      </Item>\n`;
}
