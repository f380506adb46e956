import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const isEncrypted of [false, true]) {
  conformance(`qcow (encrypted ${isEncrypted})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      const key = isEncrypted ? { "encrypt.key-secret": "key" } : {};
      const secrets = { key: "a secret" };
      const options = { size, encryption: isEncrypted, ...key };
      await createImage("qcow", file, options, { secrets });
      const open = () =>
        openNode({ driver: "qcow", file, ...key }, { secrets });
      return { node: await open(), reopen: open };
    },
  });
}
