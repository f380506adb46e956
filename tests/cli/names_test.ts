/**
 * Names with colons, compared with qemu-img: which are paths, which have a
 * scheme, and how they are shown.
 *
 * @module
 */
import { runOk } from "../qemu.ts";
import { besideQemu } from "./beside.ts";

/** A description of an image for `json:`, without blanks. */
function described(filename: string, others: object = {}): string {
  const file = { driver: "file", filename };
  return `json:${JSON.stringify({ driver: "qcow2", file, ...others })}`;
}

besideQemu("names with colons", {
  needsHoles: (call) => call.startsWith("map "),
  async prepare(folder) {
    const lines = [
      "mkdir sub:dir",
      "qemu-img create -q -f qcow2 ./image:base 1M",
      "qemu-img create -q -f qcow2 -b ./image:base -F qcow2 ./image:top",
      "qemu-img create -q -f qcow2 -b file:image:base -F qcow2 ./by:scheme",
      "qemu-img create -q -f raw ./sub:dir/base 1M",
      "qemu-img create -q -f qcow2 -b base -F raw ./sub:dir/top",
      "qemu-img create -q -f raw ./:x 1M",
      "qemu-img create -q -f qcow2 -u -b image:base -F qcow2 wrong 1M",
      "for i in top:1 top:2; do",
      "  qemu-img create -q -f qcow2 -b ./image:base -F qcow2 ./$i; done",
    ];
    await runOk(["bash", "-ec", lines.join("\n")], { cwd: folder });
  },
  calls: [
    "info ./image:top",
    "info --backing-chain --output=json ./image:top",
    "info image:top",
    "info file:image:top",
    "info --backing-chain file:image:top",
    "info --backing-chain by:scheme",
    "info --backing-chain ./by:scheme",
    "info --backing-chain wrong",
    "map wrong",
    `info ${described("image:top")}`,
    `info --backing-chain ${described("./image:top")}`,
    `info --backing-chain ${described("file:image:top")}`,
    'info json:{"file":{"filename":"image:top"}}',
    'info json:{"file.filename":"file:image:top"}',
    'info json:{"driver":"raw","size":512,"file":{"filename":"image:base"}}',
    "info --image-opts driver=qcow2,file.filename=image:base",
    "info --image-opts file.filename=image:base",
    "info --image-opts driver=qcow2,file.filename=file:image:base",
    "info :x",
    "info ./:x",
    "info file::x",
    "info blkdebug::./image:top",
    "info blkdebug::file:image:top",
    "info blkdebug::image:top",
    "info --backing-chain file:sub:dir/top",
    "map file:sub:dir/top",
    `map ${described("sub:dir/top")}`,
    `map ${described("./sub:dir/top")}`,
    "info file:no:such",
    "info file:no/such:file",
    "resize file:no:such 1M",
    "create -f qcow2 -b image:base -F qcow2 ./new:image",
    "create -f qcow2 -b ./image:base -F qcow2 ./new:image",
    "create -f qcow2 -b file:image:base -F qcow2 file:new:image",
    "create -f qcow2 -b base -F raw file:sub:dir/new",
    "create -f raw new:image 1M",
    "convert -O qcow2 ./image:top ./new:image",
    "convert -O qcow2 file:image:top file:new:image",
    "convert -O qcow2 -B ./image:base -F qcow2 ./image:top ./new:image",
    "compare ./image:top file:image:base",
    "rebase -b image:base -F qcow2 ./image:top",
    "rebase -b file:image:base -F qcow2 ./image:top",
    "rebase -b base -F raw file:sub:dir/top",
    "commit -b file:image:base ./by:scheme",
    "commit -b ./image:base ./top:1",
    "commit file:image:top",
  ],
});
