/** `measure`, compared with qemu-img's: output and refusals. @module */
import { runOk } from "../qemu.ts";
import { besideQemu, words } from "./beside.ts";

besideQemu("measure behaves as qemu-img does", {
  async prepare(cwd) {
    const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
    await img("create -q -f qcow2 a.qcow2 4M");
    await runOk(["qemu-io", "-c", "write 1M 100k", "a.qcow2"], { cwd });
    await img("snapshot -c one a.qcow2");
    await runOk(["qemu-io", "-c", "write 2M 1M", "a.qcow2"], { cwd });
    await img("create -q -f qcow2 b.qcow2 4M");
    await img("bitmap --add b.qcow2 bitmap");
  },
  // The help text is ours.
  normalize: (text) => /^(Usage|qemu-img version)/.test(text) ? "HELP" : text,
  calls: [
    "measure a.qcow2",
    "measure --output=json a.qcow2",
    "measure -O qcow2 a.qcow2",
    "measure --output=json -O qcow2 a.qcow2",
    "measure -O qcow2 b.qcow2",
    "measure --output json -O qcow2 b.qcow2",
    "measure -O raw b.qcow2",
    "measure -f raw -O qcow2 a.qcow2",
    "measure -O qcow2 -l one a.qcow2",
    "measure -O qcow2 -l 1 a.qcow2",
    "measure -O qcow2 -l snapshot.name=one a.qcow2",
    "measure -l snapshot.foo=bar",
    "measure -l snapshot.foo=bar missing",
    "measure -U -O qcow2 a.qcow2",
    "measure -O qcow2 --image-opts driver=qcow2,file.filename=a.qcow2",
    "measure --size 1G",
    "measure --size 1000",
    "measure --size=0 -O qcow2",
    "measure --size=1G -O qcow2 --output=human",
    "measure --size=1G -O qcow2 --output=json",
    "measure --size=1G -O qcow2 -o preallocation=full",
    "measure --size=1G -O qcow2 -o cluster_size=512 -o refcount_bits=64",
    // Invalid calls.
    "measure",
    "measure a.qcow2 b.qcow2",
    "measure --size 1G a.qcow2",
    "measure -f qcow2",
    "measure -l one",
    "measure --image-opts --size 1G",
    "measure nothing",
    "measure --size x",
    "measure --size -1",
    "measure --output=xml --size 1G",
    "measure -O nothing --size 1G",
    "measure -O null-co --size 1G",
    "measure -O qcow2 -l two a.qcow2",
    "measure -O qcow2 -l snapshot.id=7 a.qcow2",
    "measure -O qcow2 --size 1G -o nothing=1",
    "measure -O qcow2 --size 1G -o help",
    "measure -O qcow2 --size 1G -o ,",
    "measure -O qcow2 --size 1G -o cluster_size=x",
    "measure -O qcow2 --size 1G -o cluster_size=3000",
    "measure -O qcow2 --size 1G -o compat=v2",
    "measure -O qcow2 --size 1G -o refcount_bits=3",
    "measure -O qcow2 --size 1G -o compat=0.10,refcount_bits=8",
    "measure -O qcow2 --size 1G -o preallocation=x",
    "measure -O qcow2 --size 1G -o extended_l2=on,cluster_size=8k",
    "measure -O qcow2 --size 5E",
    "measure -O qcow2 --size 1G -o cluster_size=512 --size 129G",
    "measure --nothing",
    "measure -Z",
    "measure -f",
    "measure --output",
  ],
});
