import { assertEquals } from "@std/assert";
import { hasSecrets, withoutSecrets } from "../../core/redaction.ts";

const SECRETS: [text: string, shown: string][] = [
  ["http://u:pw@h/x", "http://***@h/x"],
  ["https://token@h/x", "https://***@h/x"],
  ["http://u:two words@h/x", "http://***@h/x"],
  ["'http://u:it's@h/x' is bad", "'http://***@h/x' is bad"],
  ["http://u:a@b@[bad/x", "http://***@[bad/x"],
  ["nbd://u:pw@h:10809/x", "nbd://***@h:10809/x"],
  ["ssh://u:pw@h/x", "ssh://***@h/x"],
  ["nbd+unix://u:pw@/x?socket=/s", "nbd+unix://***@/x?socket=/s"],
  ["http://h/x?X-Amz-Signature=1&a=2", "http://h/x?X-Amz-Signature=***&a=***"],
  [
    'json:{"driver":"http","url":"http://h/x","cookie":"a=\\"b; c"}',
    'json:{"driver":"http","url":"http://h/x","cookie":"***"}',
  ],
  [
    'json:{"file":{"headers":{"Authorization":"Bearer x"},"url":"http://h"}}',
    'json:{"file":{"headers":"***","url":"http://h"}}',
  ],
  [
    'json:{"file.cookie":"c","file.headers.X-Key":"k","size":1}',
    'json:{"file.cookie":"***","file.headers.X-Key":"***","size":1}',
  ],
  [
    "'driver=http,url=http://h/x,cookie=a=b; c=d,,e,timeout=5'",
    "'driver=http,url=http://h/x,cookie=***,timeout=5'",
  ],
  ["file.cookie=c,file.headers.A=b c", "file.cookie=***,file.headers.A=***"],
  [
    "'rbd:p/i:id=me:key=AQBx==:conf=/etc/c'",
    "'rbd:p/i:id=me:key=***:conf=/etc/c'",
  ],
];

Deno.test("withoutSecrets() hides passwords, tokens, cookies and keys", async (t) => {
  for (const [text, shown] of SECRETS) {
    await t.step(text, () => {
      assertEquals(withoutSecrets(text), shown);
      assertEquals(withoutSecrets(shown), shown);
      assertEquals(hasSecrets(text), true);
    });
  }
});

Deno.test("withoutSecrets() leaves everything else as it is", async (t) => {
  for (
    const text of [
      "http://h/x?versionId=3",
      "Could not open 'http://h': tell me@home",
      "http://h is down, write to me@home",
      "nbd://h/export",
      "nbd+unix:///x?socket=/run/key",
      "ssh://me@h/x",
      "Parameter 'cookie' expects a string",
      "http://h/x?cookies=1 and headers",
      'json:{"driver":"http","url":"http://h/x","cookie-secret":"id"}',
      "rbd:pool/image:conf=/etc/ceph.conf",
    ]
  ) {
    await t.step(text, () => assertEquals(withoutSecrets(text), text));
  }
});
