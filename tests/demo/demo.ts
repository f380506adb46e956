/**
 * `deno task demo [FOLDER]`: makes a disk, and shows what can be done with it.
 * Every command is printed as it is run; the files stay, so that the commands
 * can be repeated and changed. Exits with 1 if anything is wrong.
 *
 * @module
 */
import { createImage, openImage } from "@bdrv/bdrv";
import { makeFatDisk, patchFatFile, readFatFile } from "./fat_disk.ts";

const CLI = decodeURIComponent(
  new URL("../../cli.ts", import.meta.url).pathname,
);
const BEFORE = "This disk has never been changed.\r\n";
const AFTER = "This disk has been CHANGED above.";

const decoder = new TextDecoder();
const encoder = new TextEncoder();

function heading(text: string): void {
  console.log(`\n%c# ${text}`, "font-weight: bold");
}

/** Print a command and run it; any exit code but `expected` ends the demo. */
async function bdrv(command: string, expected = 0): Promise<void> {
  console.log(`%c$ bdrv ${command}`, "color: green");
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-prompt", "-A", CLI, ...command.split(" ")],
    stdin: "null",
  }).spawn().status;
  if (code !== expected) {
    throw new Error(`exit code ${code} instead of ${expected}`);
  }
}

/** Print a line of code, which the demo runs next. */
function show(code: string): void {
  console.log(`%c> ${code}`, "color: blue");
}

function verify(what: string, isTrue: boolean): void {
  console.log(`  ${isTrue ? "yes" : "NO"}: ${what}`);
  if (!isTrue) throw new Error(`not so: ${what}`);
}

async function readText(image: string, name: string): Promise<string> {
  await using opened = await openImage(image, { readOnly: true });
  return decoder.decode(await readFatFile(opened, name));
}

async function demo(): Promise<void> {
  const letters = encoder.encode("All work and no play. ".repeat(5000));
  heading("A disk with a partition table and a FAT16 file system");
  show(`await createImage("raw", "disk.img", { size: 16 * 1024 ** 2 });`);
  await createImage("raw", "disk.img", { size: 16 * 1024 ** 2 });
  show(`await using disk = await openImage("disk.img", { format: "raw" });`);
  {
    await using disk = await openImage("disk.img", { format: "raw" });
    show(`await makeFatDisk(disk, { "README.TXT": …, "LETTERS.TXT": … });`);
    await makeFatDisk(disk, {
      "README.TXT": encoder.encode(BEFORE),
      "LETTERS.TXT": letters,
    });
  }
  await bdrv("info -f raw disk.img");

  heading("The same disk as qcow2: holes stay holes");
  await bdrv("convert -f raw -O qcow2 disk.img base.qcow2");
  await bdrv("compare disk.img base.qcow2");
  await bdrv("map base.qcow2");

  heading("An overlay takes all changes; the base stays as it is");
  await bdrv("create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2");
  {
    show(`await using disk = await openImage("overlay.qcow2");`);
    await using disk = await openImage("overlay.qcow2");
    show(`await patchFatFile(disk, "README.TXT", …);`);
    await patchFatFile(disk, "README.TXT", encoder.encode(AFTER));
  }
  verify(
    "the file has changed in the overlay",
    (await readText("overlay.qcow2", "README.TXT")).startsWith(AFTER),
  );
  verify(
    "the file is as it was in the base",
    await readText("base.qcow2", "README.TXT") === BEFORE,
  );
  verify(
    "the other file is seen through the overlay",
    await readText("overlay.qcow2", "LETTERS.TXT") === decoder.decode(letters),
  );
  await bdrv("compare base.qcow2 overlay.qcow2", 1);
  await bdrv("info --backing-chain overlay.qcow2");
  await bdrv("map overlay.qcow2");
  await bdrv("check overlay.qcow2");

  heading("A larger disk, and back to raw");
  await bdrv("resize overlay.qcow2 1G");
  await bdrv("convert -O raw overlay.qcow2 flat.img");
  await bdrv("compare -f qcow2 -F raw overlay.qcow2 flat.img");
  verify(
    "the file is in the flat disk",
    (await readText("flat.img", "README.TXT")).startsWith(AFTER),
  );
}

/** A word, quoted for a shell where necessary. */
function quoted(word: string): string {
  return /^[-./\w]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

const [wanted] = Deno.args;
const folder = wanted ?? await Deno.makeTempDir({ prefix: "bdrv-demo-" });
await Deno.mkdir(folder, { recursive: true });
Deno.chdir(folder);
console.log("The commands below were run after these two:\n");
console.log(`%ccd ${quoted(Deno.cwd())}`, "color: green");
// Each call through npx would take much longer.
const deno = quoted(Deno.execPath());
console.log(
  `%cbdrv() { ${deno} run --quiet -A ${quoted(CLI)} "$@"; }`,
  "color: green",
);
try {
  await demo();
  console.log(
    `\nAll is well. The images are in ${Deno.cwd()}, for you to try more; ` +
      `remove them with\nrm -r ${quoted(Deno.cwd())}`,
  );
} catch (error) {
  console.error(`\nThe demo failed: ${(error as Error).message}`);
  Deno.exitCode = 1;
}
