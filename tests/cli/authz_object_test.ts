import { assertEquals, assertThrows } from "@std/assert";
import { authorizationOf } from "../../cli/authz_object.ts";
import { BlockError } from "../../mod.ts";

const list = (properties: { [name: string]: string }) =>
  authorizationOf("authz-list", new Map(Object.entries(properties)));

Deno.test("authz-list: the first rule that matches decides", () => {
  const isAllowed = list({
    id: "a",
    policy: "allow",
    "rules.0.match": "CN=a.b",
    "rules.0.policy": "allow",
    "rules.1.match": "CN=a?b*",
    "rules.1.format": "glob",
    "rules.1.policy": "deny",
  });
  for (
    const [name, expected] of [
      ["CN=a.b", true],
      ["CN=axb", false],
      ["CN=axb,O=c", false],
      ["O=c,CN=axb", true],
      ["CN=ab", true],
    ] as const
  ) assertEquals(isAllowed(name), expected, name);
  assertEquals(list({ id: "a" })("CN=a"), false);
});

Deno.test("authz objects that make no sense are refused in QEMU's words", () => {
  for (
    const [properties, message] of [
      [{ policy: "foo" }, "Parameter 'policy' does not accept value 'foo'"],
      [{ "rules.0.match": "x" }, "Parameter 'rules.0.policy' is missing"],
      [{ "rules.0.policy": "allow" }, "Parameter 'rules.0.match' is missing"],
      [
        { "rules.0.match": "x", "rules.0.policy": "x" },
        "Parameter 'policy' does not accept value 'x'",
      ],
      [
        {
          "rules.0.match": "x",
          "rules.0.policy": "deny",
          "rules.0.format": "re",
        },
        "Parameter 'format' does not accept value 're'",
      ],
      [
        {
          "rules.0.match": "[x]",
          "rules.0.policy": "deny",
          "rules.0.format": "glob",
        },
        "Brackets and backslashes are not supported: '[x]'",
      ],
      [{ foo: "1" }, "Parameter 'foo' is unexpected"],
    ] as const
  ) assertThrows(() => list(properties as never), BlockError, message);
  assertThrows(
    () => authorizationOf("authz-simple", new Map([["id", "a"]])),
    BlockError,
    "Parameter 'identity' is missing",
  );
});
