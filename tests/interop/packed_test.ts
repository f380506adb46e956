/**
 * Archives and compressed files made by other programs, and appliances for
 * them. @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { Random } from "../model.ts";
import { BDRV, OUR_TOOLS, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** Some data, part of which does not compress. */
function writeDisk(path: string, seed = 1, size = 6 * MIB): Uint8Array {
  const disk = new Uint8Array(size);
  disk.set(new Random(seed).bytes(700_000), 70_000);
  disk.fill(seed + 1, 4 * MIB, 4 * MIB + 100_000);
  disk.set(new Random(seed + 1).bytes(512), size - 512);
  Deno.writeFileSync(path, disk);
  return disk;
}

async function sh(dir: TempDir, script: string): Promise<string> {
  return await runOk(["bash", "-ec", script], { cwd: dir.path });
}

/** Convert to raw, and compare with the disk. */
async function converts(
  dir: TempDir,
  args: readonly string[],
  disk = "disk.raw",
): Promise<void> {
  const out = dir.file("out.raw");
  await runOk([...BDRV, "convert", ...args, out], { cwd: dir.path });
  const [found, wanted] = [out, dir.file(disk)].map(Deno.readFileSync);
  assert(isEqual(found, wanted), args.join(" "));
  await Deno.remove(out);
}

/** Convert to qcow2, and have QEMU compare it with the disk. */
async function convertsToQcow2(
  dir: TempDir,
  args: readonly string[],
  disk = "disk.raw",
): Promise<void> {
  const out = dir.file("out.qcow2");
  await runOk([...BDRV, "convert", "-O", "qcow2", ...args, out], {
    cwd: dir.path,
  });
  await runOk(["qemu-img", "check", "-q", out]);
  const compared = ["qemu-img", "compare", "-F", "raw", out, dir.file(disk)];
  assertStringIncludes(await runOk(compared), "identical");
  await Deno.remove(out);
}

async function refusal(
  dir: TempDir,
  ...args: string[]
): Promise<string> {
  const { code, stderr } = await run([...BDRV, ...args], { cwd: dir.path });
  assert(code !== 0, stderr);
  return stderr;
}

qemuTest(
  "an image is used in place in a tar archive of any variant",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    const long = `${"long/".repeat(30)}${"n".repeat(90)}.raw`;
    await sh(
      dir,
      `mkdir -p $(dirname ${long}); cp disk.raw ${long}
      for kind in ustar gnu oldgnu pax v7; do
        tar --format=$kind -cf $kind.tar disk.raw
      done
      tar --format=gnu -cf long-gnu.tar ${long}
      tar --format=pax -cf long-pax.tar ${long}
      tar -cf dot.tar ./disk.raw
      tar -cf label.tar --label=disks disk.raw
      tar -cf folder.tar long
      python3 -c "
import tarfile
t = tarfile.open('python.tar', 'w')
t.add('disk.raw', 'ü.raw')
t.close()"
      qemu-img convert -f raw -O vmdk disk.raw disk.vmdk
      tar -cf vmdk.tar disk.vmdk`,
    );
    for (
      const name of ["ustar", "gnu", "oldgnu", "pax", "long-gnu", "long-pax"]
        .concat("dot", "folder", "python", "vmdk")
    ) await converts(dir, [`${name}.tar`]);
    // Without a magic number, the format has to be named.
    await converts(dir, ["-f", "tar", "v7.tar"]);
    await converts(dir, ["-f", "tar", "label.tar"]);
    const member = `driver=tar,member=${long},file.filename=long-pax.tar`;
    await converts(dir, ["--image-opts", member]);
    const stack = '{"driver": "vmdk", "file": {"driver": "tar", ' +
      '"file": {"driver": "file", "filename": "vmdk.tar"}}}';
    await converts(dir, [`json:${stack}`]);
    // Under QEMU's name it does as QEMU does: the archive's bytes are the disk.
    const { stdout, stderr } = await run(
      [...OUR_TOOLS.img, "info", dir.file("gnu.tar")],
    );
    assertStringIncludes(stdout, "file format: raw");
    assertStringIncludes(stderr, "tar archive");
    await runOk([...OUR_TOOLS.img, "convert", "-f", "tar"]
      .concat(dir.file("gnu.tar"), dir.file("o.raw")));
    await sh(dir, "cmp o.raw disk.raw");
  },
  ["qemu-img", "tar", "python3"],
);

qemuTest(
  "an archive with several images says how to choose one",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    writeDisk(dir.file("other.raw"), 5);
    await sh(
      dir,
      `tar cf two.tar disk.raw other.raw
      echo hello > README; tar cf readme.tar README disk.raw
      tar cf again.tar other.raw; cp disk.raw other.raw
      tar rf again.tar other.raw
      truncate -s 3M sparse.raw; echo x >> sparse.raw
      tar -S --format=gnu -cf sparse-gnu.tar sparse.raw
      tar -S --format=pax -cf sparse-pax.tar sparse.raw
      zip -q0 two.zip disk.raw other.raw`,
    );
    const message = await refusal(dir, "convert", "two.tar", "o.raw");
    assertStringIncludes(message, "'disk.raw', 'other.raw'");
    assertStringIncludes(message, "driver=tar,member=");
    assertStringIncludes(
      await refusal(dir, "convert", "two.zip", "o.raw"),
      "'disk.raw', 'other.raw'",
    );
    const chosen = "member=disk.raw,file.filename=two";
    await converts(dir, ["--image-opts", `driver=tar,${chosen}.tar`]);
    await converts(dir, ["--image-opts", `driver=zip,${chosen}.zip`]);
    const absent = "driver=tar,member=none,file.filename=two.tar";
    assertStringIncludes(
      await refusal(dir, "info", "--image-opts", absent),
      "no member 'none'",
    );
    await converts(dir, ["readme.tar"]);
    // Of two members with the same name the later one counts, as in unpacking.
    await converts(dir, ["again.tar"]);
    for (const kind of ["gnu", "pax"]) {
      const name = `sparse-${kind}.tar`;
      assertStringIncludes(await refusal(dir, "info", name), "sparse");
    }
  },
  ["qemu-img", "tar", "zip"],
);

qemuTest(
  "convert -O ova makes an appliance, into a file and into a pipe",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    await runOk([...BDRV, "convert", "-O", "ova", "-o", "name=vm & <1>"].concat(
      dir.file("disk.raw"),
      dir.file("a.ova"),
    ));
    await sh(
      dir,
      `${
        BDRV.join(" ")
      } convert -O ova -o adapter_type=ide disk.raw - | cat > p.ova`,
    );
    await Deno.writeTextFile(dir.file("check.py"), CHECK_OVA);
    for (const name of ["a", "p"]) {
      await sh(dir, `python3 check.py ${name}.ova`);
      await runOk(["qemu-img", "check", "-q", dir.file("out.vmdk")]);
      await sh(dir, "qemu-img compare -F raw out.vmdk disk.raw");
      await convertsToQcow2(dir, [`${name}.ova`]);
      await converts(dir, ["-f", "ova", `${name}.ova`]);
      const byId = `driver=ova,member=vmdisk1,file.filename=${name}.ova`;
      await converts(dir, ["--image-opts", byId]);
    }
    // Nothing is left of an appliance that cannot be made.
    const { code, stderr } = await run(
      [...BDRV, "convert", "-O", "ova", "-o", "name=a/b"].concat(
        dir.file("disk.raw"),
        dir.file("bad.ova"),
      ),
    );
    assertEquals(code, 1);
    assertStringIncludes(stderr, "cannot be called 'a/b'");
    assert(!(await exists(dir.file("bad.ova"))));
    for (const command of [["create", "-f", "ova", "c.ova", "1M"]]) {
      assertStringIncludes(await refusal(dir, ...command), "convert");
    }
    for (const command of [["resize", "a.ova", "+1M"], ["io", "a.ova"]]) {
      assertStringIncludes(await refusal(dir, ...command), "written");
    }
  },
  ["qemu-img", "python3"],
);

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

/** Check an appliance as importers do, and extract its disk. */
const CHECK_OVA = `
import hashlib, re, sys, tarfile
import xml.etree.ElementTree as xml
OVF = '{http://schemas.dmtf.org/ovf/envelope/1}'
archive = tarfile.open(sys.argv[1])
names = archive.getnames()
assert names[0].endswith('.ovf'), names
stem = names[0][:-4]
rest = [stem + '.mf', stem + '-disk1.vmdk']
assert names[1:] == rest or names[1:] == rest[::-1], names
content = {name: archive.extractfile(name).read() for name in names}
lines = content[stem + '.mf'].decode().splitlines()
assert len(lines) == 2
for line in lines:
    name, digest = re.fullmatch(r'SHA256\\((.*)\\)= ([0-9a-f]{64})', line).groups()
    assert hashlib.sha256(content[name]).hexdigest() == digest, name
top = xml.fromstring(content[names[0]])
file = top.find(f'{OVF}References/{OVF}File')
disk = top.find(f'{OVF}DiskSection/{OVF}Disk')
assert content[file.get(OVF + 'href')] is content[stem + '-disk1.vmdk']
assert re.fullmatch('[1-9][0-9]*', file.get(OVF + 'size'))
assert int(file.get(OVF + 'size')) == len(content[stem + '-disk1.vmdk'])
assert disk.get(OVF + 'fileRef') == file.get(OVF + 'id')
assert int(disk.get(OVF + 'capacity')) == 6 * 1024 * 1024
assert top.find(f'{OVF}VirtualSystem/{OVF}Name').text == stem
import os
assert os.path.getsize(sys.argv[1]) % 10240 == 0
open('out.vmdk', 'wb').write(content[stem + '-disk1.vmdk'])
`;

qemuTest(
  "an appliance's disk is found by its descriptor",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    writeDisk(dir.file("other.raw"), 5);
    const ovf = (files: string, disks: string) =>
      `<?xml version='1.0'?><ovf:Envelope xmlns:ovf="x"><ovf:References>${files}` +
      `</ovf:References><!-- <ovf:Disk ovf:fileRef="none"/> --><ovf:DiskSection>` +
      `${disks}</ovf:DiskSection></ovf:Envelope>`;
    const [one, two] = [
      "<ovf:File ovf:href='the%20disk &amp; more' ovf:id='f1' />",
      `<ovf:File\n ovf:id="f2" ovf:href="other.vmdk"></ovf:File>`,
    ];
    const disk = (id: string, file: string, more = "") =>
      `<ovf:Disk ovf:diskId="${id}" ovf:fileRef="${file}" ${more}/>`;
    const empty = `<ovf:Disk ovf:diskId="new" ovf:capacity="5"/>`;
    const write = (name: string, text: string) =>
      Deno.writeTextFile(dir.file(name), text);
    await write("one.ovf", ovf(one + two, empty + disk("d1", "f1")));
    await write("two.ovf", ovf(one + two, disk("d1", "f1") + disk("d2", "f2")));
    await write("gone.ovf", ovf(two.replace("other", "gone"), disk("d", "f2")));
    await write("none.ovf", ovf("", disk("d", "f3")));
    await write(
      "part.ovf",
      ovf(two.replace(" ovf", " ovf:chunkSize='9' ovf"), disk("d", "f2")),
    );
    await write("delta.ovf", ovf(two, disk("d", "f2", 'ovf:parentRef="p"')));
    await write(
      "packed.ovf",
      ovf(two.replace(" ovf", " ovf:compression='gzip' ovf"), disk("d", "f2")),
    );
    await write(
      "twice.ovf",
      ovf(
        one.replace(" ovf", " ovf:compression='identity' ovf"),
        disk("d1", "f1") + disk("d2", "f1"),
      ),
    );
    await write("diskless.ovf", ovf(one + two, empty));
    await write("bad.ovf", "nothing");
    await sh(
      dir,
      `qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw "the disk & more"
      qemu-img convert -f raw -O vmdk -o subformat=streamOptimized other.raw other.vmdk
      for one in one two gone none part delta packed twice diskless bad; do
        tar --format=ustar -cf $one.ova $one.ovf "the disk & more" other.vmdk
      done`,
    );
    await converts(dir, ["one.ova"]);
    const message = await refusal(dir, "convert", "two.ova", "o.raw");
    assertStringIncludes(message, "has 2 disks");
    assertStringIncludes(message, "'the disk & more (d1)', 'other.vmdk (d2)'");
    for (const member of ["d2", "f2", "other.vmdk"]) {
      const chosen = `driver=tar,member=${member},file.filename=two.ova`;
      await converts(dir, ["--image-opts", chosen], "other.raw");
    }
    for (
      const [name, why] of [
        ["gone", "'gone.vmdk' of the disk 'd' is not in the archive"],
        ["none", "no file 'f3'"],
        ["part", "split"],
        ["delta", "differs"],
        ["packed", "compressed as a whole (gzip)"],
        ["diskless", "no disk with a file"],
        ["bad", "envelope"],
      ]
    ) {
      assertStringIncludes(await refusal(dir, "info", `${name}.ova`), why);
    }
    // It holds no more of the disk when it is chosen by its name.
    const delta = "driver=tar,member=other.vmdk,file.filename=delta.ova";
    assertStringIncludes(
      await refusal(dir, "info", "--image-opts", delta),
      "differs",
    );
    // Two disks may begin with the same content.
    await converts(dir, ["twice.ova"]);
    const second = "driver=ova,member=d2,file.filename=twice.ova";
    await converts(dir, ["--image-opts", second]);
  },
  ["qemu-img", "tar"],
);

qemuTest(
  "compressed disks of other programs are unpacked by convert",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    await sh(
      dir,
      `gzip -k disk.raw; head -c 2000000 disk.raw | gzip > two.gz
      tail -c +2000001 disk.raw | gzip >> two.gz
      (cat disk.raw.gz; head -c 1000 /dev/zero) > zeroes.gz
      (head -c 99 disk.raw | gzip; head -c 600000 /dev/zero
        tail -c +100 disk.raw | gzip; head -c 9 /dev/zero) > tape.gz
      bgzip -c disk.raw > bgzf.gz
      (cat bgzf.gz; head -c 1000 /dev/zero) > bgzf-zeroes.gz
      xz -k disk.raw; xz -c --block-size=300KiB -C none disk.raw > blocks.xz
      (head -c 3000000 disk.raw | xz -C crc32; head -c 400 /dev/zero
        tail -c +3000001 disk.raw | xz --block-size=1MiB -C sha256
        head -c 8 /dev/zero) > streams.xz
      zstd -q -k disk.raw; (head -c 9999 disk.raw | zstd -q
        tail -c +10000 disk.raw | zstd -q --long=27) > two.zst
      (printf '\\120*M\\030\\004\\0\\0\\0abcd\\137*M\\030\\0\\0\\0\\0'
        cat disk.raw.zst) > skipped.zst
      (printf '\\121*M\\030\\0\\004\\0\\0'
        head -c 1024 /dev/zero; cat disk.raw.zst) > skipped-long.zst
      zip -q deflated.zip disk.raw; zip -q0 stored.zip disk.raw
      cat disk.raw | zip -q piped.zip -
      (echo '#!/bin/sh'; cat stored.zip) > program.zip
      python3 -c "
import zipfile
z = zipfile.ZipFile('python.zip', 'w')
with z.open('disk.raw', 'w', force_zip64=True) as f:
    f.write(open('disk.raw', 'rb').read())
z.close()"`,
    );
    const streamed = ["disk.raw.gz", "two.gz", "zeroes.gz", "disk.raw.zst"]
      .concat(
        "tape.gz",
        "two.zst",
        "skipped.zst",
        "skipped-long.zst",
        "deflated.zip",
        "piped.zip",
      );
    await convertsToQcow2(dir, ["disk.raw.gz"]);
    for (const name of streamed) await converts(dir, [name]);
    await sh(
      dir,
      `(cat disk.raw.gz; echo more) > more.gz
      (cat bgzf.gz; head -c 700000 /dev/zero; echo more) > bgzf-more.gz
      (head -c 9999 disk.raw | gzip; echo more
        tail -c +10000 disk.raw | gzip) > hole.gz
      (cat disk.raw.gz; printf '\\037\\213') > begun.gz`,
    );
    for (const name of ["more.gz", "bgzf-more.gz"]) {
      const converted = await run([...BDRV, "convert", name, "more.raw"], {
        cwd: dir.path,
      });
      assertEquals(converted.code, 0);
      assertStringIncludes(
        converted.stderr,
        `warning: '${name}': What follows the end of the gzip data is ignored`,
      );
      await sh(dir, "cmp more.raw disk.raw");
    }
    for (const [name, why] of [["hole", "damaged"], ["begun", "cut off"]]) {
      const refused = await refusal(dir, "convert", `${name}.gz`, "o.raw");
      assertStringIncludes(refused, why);
    }
    for (
      const args of [
        ["map", "disk.raw.gz"],
        ["io", "-r", "two.zst"],
        ["compare", "deflated.zip", "disk.raw"],
      ]
    ) {
      const message = await refusal(dir, ...args);
      assertStringIncludes(message, "from its beginning to its end");
      assertStringIncludes(message, "'bdrv convert' can");
    }
    const entered = [
      "bgzf.gz",
      "bgzf-zeroes.gz",
      "disk.raw.xz",
      "blocks.xz",
      "streams.xz",
    ]
      .concat("stored.zip", "python.zip");
    for (const name of entered) {
      const compared = [...BDRV, "compare", name, "disk.raw"];
      await runOk(compared, { cwd: dir.path });
    }
    await convertsToQcow2(dir, ["streams.xz"]);
    await converts(dir, ["-f", "zip", "program.zip"]);
    // Under QEMU's name: raw, unless told otherwise.
    await runOk([...OUR_TOOLS.img, "convert", "disk.raw.gz", "same.gz"], {
      cwd: dir.path,
    });
    await sh(
      dir,
      "head -c $(stat -c %s disk.raw.gz) same.gz | cmp - disk.raw.gz",
    );
    for (
      const [format, name] of [["gzip", "disk.raw.gz"], ["xz", "blocks.xz"]]
    ) {
      const args = ["convert", "-f", format, name, "unpacked.raw"];
      await runOk([...OUR_TOOLS.img, ...args], { cwd: dir.path });
      await sh(dir, "cmp unpacked.raw disk.raw; rm unpacked.raw");
    }
    const stacked = "driver=raw,file.driver=gzip,file.file.filename=";
    await converts(dir, ["--image-opts", `${stacked}disk.raw.gz`]);
  },
  ["qemu-img", "gzip", "bgzip", "xz", "zstd", "zip", "python3"],
);

qemuTest(
  "what cannot be unpacked is refused, unless it is said to be raw",
  async () => {
    await using dir = new TempDir();
    writeDisk(dir.file("disk.raw"));
    await sh(
      dir,
      `bzip2 -k disk.raw; xz -c --format=lzma disk.raw > disk.lzma
      printf '' | bzip2 > empty.bz2
      python3 -c "
import lzma, zipfile
zipfile.ZipFile('empty.zip', 'w').close()"
      zip -q -s 64k -0 split.zip disk.raw`,
    );
    const packed = [
      ["disk.raw.bz2", "compressed with bzip2", "(bunzip2 -k)"],
      ["empty.bz2", "compressed with bzip2", "(bunzip2 -k)"],
      ["disk.lzma", "compressed with lzma", "(unlzma -k)"],
    ];
    for (const [name, what, how] of packed) {
      for (
        const args of [
          ["info", name],
          ["convert", name, "o.raw"],
          ["compare", name, "disk.raw"],
          ["resize", name, "+1M"],
        ]
      ) {
        const message = await refusal(dir, ...args);
        assertStringIncludes(message, name);
        assertStringIncludes(message, `is ${what}`);
        assertStringIncludes(message, how);
      }
      assert(!(await exists(dir.file("o.raw"))), name);
      const piped = `! cat ${name} | ${BDRV.join(" ")} convert - o.raw 2>&1`;
      assertStringIncludes(await sh(dir, piped), what);
      assert(!(await exists(dir.file("o.raw"))), name);
      const theirs = await run([...OUR_TOOLS.img, "info", name], {
        cwd: dir.path,
      });
      assertEquals(theirs.code, 0);
      assertStringIncludes(theirs.stderr, what);
      await sh(dir, `${BDRV.join(" ")} convert -f raw ${name} same.raw`);
      await sh(dir, `head -c $(stat -c %s ${name}) same.raw | cmp - ${name}`);
    }
    assertStringIncludes(await refusal(dir, "info", "empty.zip"), "no file");
    assertStringIncludes(
      await refusal(dir, "info", "-f", "zip", "split.zip"),
      "split",
    );
    assertStringIncludes(await refusal(dir, "info", "split.z01"), "zip");
  },
  ["qemu-img", "bzip2", "xz", "zip", "python3"],
);

qemuTest(
  "a source that is damaged, truncated or not a raw disk leaves no target",
  async () => {
    await using dir = new TempDir();
    const size = writeDisk(dir.file("disk.raw")).length;
    await sh(
      dir,
      `gzip -k disk.raw; xz -k disk.raw; zstd -qk disk.raw; zip -q disk.zip disk.raw
      for name in disk.raw.gz disk.raw.xz disk.raw.zst disk.zip; do
        head -c 500000 $name > cut-$name
        cp $name bad-$name
        printf 'XXXX' | dd of=bad-$name bs=1 seek=300000 conv=notrunc status=none
      done
      cp disk.raw.gz sum-disk.raw.gz
      printf 'XXXX' | dd of=sum-disk.raw.gz bs=1 conv=notrunc status=none \
        seek=$(( $(stat -c %s disk.raw.gz) - 8 ))
      tar czf archive.tar.gz disk.raw; qemu-img create -q -f qcow2 i.qcow2 1M
      zstd -qk i.qcow2; zip -q i.zip i.qcow2; gzip i.qcow2
      cp disk.raw.gz self.gz
      zip -qe -P secret locked.zip disk.raw; zip -q -Z bzip2 bzip2.zip disk.raw
      truncate -s 80M large.raw; xz --block-size=70MiB large.raw`,
    );
    const names = ["disk.raw.gz", "disk.raw.xz", "disk.raw.zst", "disk.zip"];
    for (
      const name of [
        ...names.map((name) => `cut-${name}`),
        ...names.map((name) => `bad-${name}`),
        "sum-disk.raw.gz",
      ]
    ) {
      const message = await refusal(dir, "convert", name, "o.raw");
      assert(/damaged|cut off/.test(message), message);
      assert(!(await exists(dir.file("o.raw"))), name);
    }
    for (
      const [name, why] of [
        ["archive.tar.gz", "a tar archive"],
        ["archive.tar.gz", "(gunzip -k)"],
        ["i.qcow2.gz", "'qcow2'"],
        // A way out, and how to pack it so that it can be read.
        ["i.qcow2.gz", "(gunzip -k); packed by 'xz -T0' or bgzip"],
        ["i.qcow2.zst", "(zstd -dk)"],
        ["i.zip", "(unzip)"],
        ["locked.zip", "encrypted"],
        ["bzip2.zip", "method 12"],
      ]
    ) {
      const message = await refusal(dir, "convert", name, "o.raw");
      assertStringIncludes(message, why);
      assert(!(await exists(dir.file("o.raw"))), name);
    }
    for (
      const [args, why] of [
        [["convert", "self.gz", "self.gz"], "overwritten"],
        [["convert", "self.gz", "-"], "Standard output"],
        [["convert", "self.gz", "disk.raw", "o.raw"], "concatenated"],
        [["convert", "-l", "x", "self.gz", "o.raw"], "-l"],
        [["convert", "-O", "ova", "self.gz", "o.ova"], "read twice"],
        [["map", "large.raw.xz"], "large blocks"],
      ] as const
    ) assertStringIncludes(await refusal(dir, ...args), why);
    await sh(dir, "cmp self.gz disk.raw.gz");
    await runOk([...BDRV, "convert", "large.raw.xz", "large.raw"], {
      cwd: dir.path,
    });
    const large = await Deno.stat(dir.file("large.raw"));
    assertEquals([large.size, size], [80 * MIB, 6 * MIB]);
    // Without permission for FFI, no library may be called.
    const careful = BDRV.map((arg) =>
      arg === "--allow-all" ? "--allow-read --allow-write" : arg
    ).flatMap((arg) => arg.split(" "));
    const { stderr } = await run([
      ...careful,
      "convert",
      "disk.raw.xz",
      "o.raw",
    ], {
      cwd: dir.path,
    });
    assertStringIncludes(stderr, "liblzma");
    await runOk([...careful, "convert", "disk.raw.gz", "o.raw"], {
      cwd: dir.path,
    });
    await sh(dir, "cmp o.raw disk.raw");
  },
  ["qemu-img", "gzip", "xz", "zstd", "zip", "tar"],
);

qemuTest(
  "an image in an archive cannot name files outside, unless the archive is named",
  async () => {
    await using dir = new TempDir();
    await sh(
      dir,
      `qemu-img create -q -f raw base.raw 1M
      qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
      tar cf top.tar top.qcow2`,
    );
    const message = await refusal(dir, "convert", "top.tar", "o.raw");
    assertStringIncludes(message, "not permitted");
    await runOk([...BDRV, "convert", "-f", "tar", "top.tar", "o.raw"], {
      cwd: dir.path,
    });
  },
  ["qemu-img", "tar"],
);
