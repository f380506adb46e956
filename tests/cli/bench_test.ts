/** `bench`, compared with qemu-img's. @module */
import { runOk } from "../qemu.ts";
import { besideQemu, words } from "./beside.ts";

besideQemu("bench behaves as qemu-img does", {
  async prepare(cwd) {
    const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
    await img("create -q -f qcow2 a.qcow2 4M");
    await img("create -q -f raw a.raw 1M");
  },
  normalize: (text) => text.replace(/in \d+\.\d{3} seconds/g, "in TIME"),
  async inspect(call, { ours, theirs }) {
    if (!call.includes("-w")) return;
    await runOk([
      "qemu-img",
      "compare",
      `${ours}/a.qcow2`,
      `${theirs}/a.qcow2`,
    ]);
    await runOk(["qemu-img", "check", `${ours}/a.qcow2`]);
  },
  calls: [
    "bench a.qcow2",
    "bench -c 100 a.raw",
    "bench -f raw -c 100 -d 1 a.raw",
    "bench -c 010 -d 0x3 a.qcow2",
    "bench -c 0 a.qcow2",
    "bench -c 100 -s 1k -S 3k -o 1M a.qcow2",
    "bench -c 100 -s 1000 -S 8 a.qcow2",
    "bench -q -c 100 -t none a.qcow2",
    "bench -w -c 100 -d 8 -s 64k a.qcow2",
    "bench -w -c 100 -d 8 -s 64k --pattern=0x41 a.qcow2",
    "bench -w -c 1000 -d 64 -s 300 -S 777 --pattern 65 a.qcow2",
    "bench -w -c 100 -t writethrough -s 1k a.qcow2",
    "bench -w -c 1000 -d 10 --flush-interval=64 a.qcow2",
    "bench -w -c 1000 -d 10 --flush-interval=10 -s 4k -S 8k a.qcow2",
    "bench -w -c 1000 -d 10 --flush-interval=64 --no-drain a.qcow2",
    "bench -U -c 10 a.qcow2",
    "bench -i threads -c 10 a.qcow2",
    "bench -n -t none -c 10 a.qcow2",
    "bench --image-opts -c 10 driver=qcow2,file.filename=a.qcow2",
    // Invalid calls.
    "bench",
    "bench a b",
    "bench nothing",
    "bench -c -1 a.qcow2",
    "bench -c 1x a.qcow2",
    "bench -c 99999999999 a.qcow2",
    "bench -d x a.qcow2",
    "bench -s 2G a.qcow2",
    "bench -s x a.qcow2",
    "bench -S 2G a.qcow2",
    "bench -o x a.qcow2",
    "bench -c 10 -o 4M a.qcow2",
    "bench -c 2000 -s 3000 a.qcow2",
    "bench -t x a.qcow2",
    "bench -i x a.qcow2",
    "bench -i native a.qcow2",
    "bench -n a.qcow2",
    "bench --pattern=256 a.qcow2",
    "bench --pattern=x a.qcow2",
    "bench --flush-interval=64 a.qcow2",
    "bench -w --flush-interval=63 a.qcow2",
    "bench -w --flush-interval=x a.qcow2",
    "bench -Z",
    "bench -c",
  ],
});
