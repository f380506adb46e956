/**
 * The completion scripts, loaded by the shells themselves. A shell that is not
 * installed shows as an ignored test.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

/** The completions of a line's last word, in a folder with `disk.qcow2`. */
const LINES: { readonly [line: string]: readonly string[] } = {
  "bdrv conver": ["convert"],
  "bdrv --ver": ["--version"],
  "bdrv check --rep": ["--repair"],
  "bdrv check -r ": ["all", "leaks"],
  "bdrv convert -O ": ["qcow2", "raw"],
  "bdrv convert -t un": ["unsafe"],
  "bdrv resize --preallocation f": ["falloc", "full"],
  "bdrv info di": ["disk.qcow2"],
  "bdrv convert -c -O qcow2 di": ["disk.qcow2"],
  "bdrv info --output j": ["json"],
  "bdrv completions ": ["bash", "fish", "zsh"],
  "bdrv bench -c ": [],
};

/** Test what a shell makes of its script. */
function shellTest(
  shell: string,
  complete: (script: string, line: string, cwd: string) => Promise<string[]>,
): void {
  Deno.test({
    name: `${shell} completes commands, options, values and files`,
    ignore: mustSkip({ tools: [shell] }),
    async fn(t) {
      await using dir = new TempDir();
      const cwd = dir.path;
      Deno.writeTextFileSync(dir.file("disk.qcow2"), "");
      const script = await runOk([...BDRV, "completions", shell]);
      for (const [line, words] of Object.entries(LINES)) {
        await t.step(line, async () => {
          assertEquals((await complete(script, line, cwd)).toSorted(), words);
        });
      }
    },
  });
}

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

shellTest("bash", async (script, line, cwd) => {
  const call = `${script}
read -ra COMP_WORDS <<< "$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((\${#COMP_WORDS[@]} - 1))
$(complete -p bdrv | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "\${COMPREPLY[@]}"`;
  return lines(await runOk(["bash", "-c", call, "bash", line], { cwd }));
});

shellTest("fish", async (script, line, cwd) => {
  const call = `${script}\ncomplete -C '${line}'`;
  const env = { HOME: cwd };
  const out = await runOk(["fish", "--no-config", "-c", call], { cwd, env });
  return lines(out).map((found) => found.split("\t")[0]);
});

/**
 * zsh only completes as the user types: so the line is typed, on a
 * pseudo-terminal; the matches are also written to a file.
 */
const ZSH = `zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; PS2=; autoload -U compinit && compinit -u -D; source $1"
zpty -w shell 'compadd() {
  local -a found; builtin compadd -O found "$@"
  (( $#found )) && print -rl -- $found >> .found
  builtin compadd "$@"
}'
zpty -w shell 'bindkey "^I" complete-word
zle-line-init() { print REA""DY }; zle -N zle-line-init'
zpty -r shell out '*READY*'
zpty -w -n shell "$2"$'\\t'$'\\C-u'"print EN""D"$'\\n'
zpty -r shell out '*END*'`;

shellTest("zsh", async (script, line, cwd) => {
  Deno.writeTextFileSync(`${cwd}/.script`, script);
  Deno.writeTextFileSync(`${cwd}/.found`, "");
  const args = ["zsh", "-f", "-c", ZSH, "zsh", `${cwd}/.script`, line];
  await runOk(["timeout", "30", ...args], { cwd });
  return [...new Set(lines(Deno.readTextFileSync(`${cwd}/.found`)))];
});

Deno.test("completions of an unknown shell are refused", async () => {
  const { code, stderr } = await run([...BDRV, "completions", "csh"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "there are bash, zsh, fish");
});

Deno.test("a script completes -o up to the equals sign", async () => {
  const script = await runOk([...BDRV, "completions", "bash"]);
  assert(/-o\|--options\) _bdrv_words '[^']*\bcluster_size= /.test(script));
});
