/**
 * Our command line beside qemu-io: the same commands on the same files must
 * print the same, exit with the same code, and leave the same content.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  BDRV,
  isBeyond,
  qemuTest,
  run,
  runOk,
  type RunOptions,
  TempDir,
} from "../qemu.ts";

const SETUP = [
  "create -f raw disk.raw 1M",
  "create -f qcow2 base.qcow2 1M",
  "create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2",
  "create -f qcow2 -o cluster_size=512,compat=0.10 old.qcow2 1M",
  "create -f parallels disk.hds 1M",
  "create -f vdi disk.vdi 1M",
  "create -f qed old.qed 1M",
];

/** Arguments, and a command after each `;`. */
const CALLS: { [subject: string]: string[] } = {
  "reads and writes": [
    "-f raw disk.raw; write 0 64k; read 0 64k; readv 5 10 1k 0; writev -P 3 1 2 3",
    "-f raw disk.raw; read 0 0; read 1M 0; read 1048577 0; read 1M 1; write 1M 1",
    "-f raw disk.raw; write -P 0x41 3 30; read -v 0 40; readv -v 7 3 3; read -C 0 64k",
    "-f raw disk.raw; write -C 0 1k; write -qC 0 1k; writev -C 0 1k; discard -C 0 1k",
    "-f raw disk.raw; r 9223372036854775807 1; w 9223372036854775808 1; r 1e5 5",
    "-f raw disk.raw; write 0.5k 1.5k; write .5k 10b; read 0x200 0x10; w 1. 2",
    "-f raw disk.raw; write -P 255 0 1; write -P 256 0 1; write -P -1 0 1; write -P 1x 0 1; write -P 010 0 1; read -P 8 0 1",
    "-f qcow2 top.qcow2; write -P 7 3k 100k; read -P 7 3k 100k; read -P 7 0 100k; read -P 7 -s 3k 0 4k",
    "-f qcow2 top.qcow2; read -P 0 -l 5 -s 3 0 8; read -P 0 -l 6 -s 3 0 8; read -l 5 0 8; read -s 5 0 8",
    "-f qcow2 top.qcow2; read -pqP 1 0 8; readv -P 1 0 8 8; readv -qP 0 0 8",
    "-f qcow2 top.qcow2; read 0 2147483137; write 0 3G; write -z 0 3G; write -z -n 0 3G; discard 0 3G",
    "-f qcow2 top.qcow2; readv 0 2147483137; writev 0 1G 1G; readv 0 x",
  ],
  "all kinds of writes": [
    "-f qcow2 top.qcow2; write 0 192k; write -z 64k 64k; write -zu 0 64k; map; write -zn 1k 1k; map; write -z 100k 1k; write -zn 190k 1k; map; write -z 200k 1k; write -zu 999k 25k; map",
    "-f qcow2 top.qcow2; write -c 0 128k; write -c 0 64k; write -c 512 64k; write -c 64k 512; write -c 1M 512; write -c 1 512; write -c 0 5",
    "-f qcow2 base.qcow2; write -b 512 1k; read -b -P 0xcd 512 1k; read -bv 0 512; write -b 1 512; read -b 0 1",
    "-f raw disk.raw; write -b 0 512; read -b 0 512; write -c 0 512; write -zn 0 512; write -f 0 512",
    "-f raw disk.raw; write -bz 0 1; write -fb 0 1; write -fc 0 1; write -n 0 1; write -u 0 1; write -zP 1 0 1; write -s a -P 1 0 1",
    "-f raw disk.raw; write -s pattern 0 20; read -v 0 20; write -s nothing 0 20; write -s empty 0 1; write -s pattern 0 0; write -s . 0 1",
    "-f raw disk.raw; write 0 4k; write -s /dev/zero 1 1001; read -P 0 1 1001; write -s /dev/full 2k 100; read -P 0 2k 100; write -s /dev/null 0 1",
    "-f qcow2 top.qcow2; write 0 1M; discard 0 64k; discard -q 64k 1k; map; d 1M 1; discard 0",
    "-f qcow2 -d ignore top.qcow2; write 0 1M; discard 0 64k; map; discard 1M 1",
  ],
  "requests in the background": [
    "-f qcow2 top.qcow2; aio_write -P 3 0 64k; aio_flush; aio_read -P 3 0 64k; aio_flush; aio_read -P 4 0 1 1; length",
    "-f qcow2 top.qcow2; aio_write -q 0 1k; aio_write -z 64k 64k; aio_flush; aio_write -zu 64k 64k; aio_flush; aio_read -v 0 4",
    "-f qcow2 top.qcow2; aio_write 1M 1; aio_flush; aio_read 1M 1; aio_flush; aio_write -i 0 1; aio_read -i 0 1",
    "-f qcow2 top.qcow2; aio_write -z 0 1 1; aio_write -u 0 1; aio_write -zP 1 0 1; aio_flush; aio_write 0; aio_read x 1; aio_write -C 0 1k",
  ],
  "what the file is": [
    "-f qcow2 -r -s base.qcow2; map; write 0 1; read -P 0xcd 0 64k",
    "-f raw disk.raw; info; map; alloc 0; alloc 0 2M; alloc 1M; alloc 2M 5; length; l",
    "-f qcow2 top.qcow2; info; write 100k 100k; map; alloc 0; alloc 64k 1M; a 100k 5; length",
    "-f qcow2 old.qcow2; i; write 100k 1k; map",
    "-f raw disk.raw; truncate 2M; l; truncate 3G; l; truncate 5; l; truncate; t 1 2 3 4; t -m foo 1; t x",
    "-f qcow2 base.qcow2; truncate 2M; l; truncate 1000; truncate -m metadata 3M; map; t 512; l; map",
    "-f vdi disk.vdi; i; t 2M; l",
    "-f parallels disk.hds; i; t 2M; l",
  ],
  "opening and closing": [
    "; open disk.raw; l; open disk.raw; close; close; l; read 0 1; o -r top.qcow2; write 0 1; info",
    "; open -o driver=qcow2 disk.raw; open nothing; open -o driver=qcow2,file.filename=nothing; open -o driver=nothing a; open a b; open",
    "; open -o driver=qcow2,file.driver=file,file.filename=top.qcow2; info; close; open -o driver=raw top.qcow2; l",
    "; open -o driver=qcow2,lazy-refcounts=x,file.filename=top.qcow2; open -t x a; open -d x a; open -i x a; open -x a; open -t",
    "; open -s -o driver=qcow2 top.qcow2; write 0 64k; map; read -P 0xcd 0 64k; close; open top.qcow2; map",
    "-r -f qcow2 top.qcow2; write 0 1; writev 0 1; aio_write 0 1; discard 0 1; truncate 1; write x",
    "--image-opts driver=qcow2,file.filename=top.qcow2; length; open -o a=b c",
    "--image-opts driver=qcow2,file.filename=nothing; length",
    "--image-opts driver=nothing; length",
    "-f raw nothing; length",
    "-f qcow2 disk.raw; length",
    "-f nothing disk.raw; length",
    "-t none -f raw disk.raw; q; length",
    "-f raw --image-opts disk.raw; length",
    "-t x; l",
    "-d x; l",
    "-i x; l",
  ],
  "reopening": [
    "-f qcow2 top.qcow2; reopen -r; write 0 512; reopen -w; write 0 512; reopen -rw; reopen x; reopen -c x; reopen -x",
    "-f qcow2 top.qcow2; reopen -o foo=bar; reopen -o driver=raw; reopen -o file.filename=x; reopen -o file.foo=x; reopen",
    "-f qcow2 top.qcow2; reopen -o overlap-check=x; reopen -o lazy-refcounts=x; reopen -o l2-cache-entry-size=33k; write 0 1",
    "-f qcow2 top.qcow2; reopen -ro read-only=on; reopen -c none -o cache.direct=on; reopen -o read-only=on; write 0 1",
    "-f qcow2 top.qcow2; reopen -o read-only=x; reopen -o cache.no-flush=x; write -q 0 1k; reopen -c writeback; map",
  ],
  "options of nodes": [
    "-f raw -k disk.raw; length",
    "-f raw -i native -t unsafe disk.raw; length",
    "-f raw -n -k disk.raw; length; close; open -k disk.raw; open -i bad disk.raw; open -n -i native -r disk.raw; length",
    "--image-opts driver=file,filename=disk.raw,aio=io_uring; length",
    "--image-opts driver=file,filename=disk.raw,aio=native; length",
    "--image-opts driver=file,filename=disk.raw,aio=soon; length",
    "--image-opts driver=file,filename=disk.raw,aio=native,cache.direct=on; length",
    "--image-opts driver=file,filename=disk.raw,locking=maybe; length",
    "--image-opts driver=qcow2,file.filename=base.qcow2,detect-zeroes=unmap; write 0 128k; write -P 0 0 64k; write -P 0 64k 1k; map",
    "--image-opts driver=qcow2,file.filename=base.qcow2,detect-zeroes=on,discard=off; write 0 128k; write -P 0 0 64k; map; write -zu 64k 64k; map",
    "--image-opts driver=qcow2,file.filename=base.qcow2,detect-zeroes=unmap,discard=off; length",
    "--image-opts driver=raw,file.filename=disk.raw,detect-zeroes=maybe; length",
    "--image-opts driver=raw,file.filename=disk.raw,detect-zeroes=on; write 0 64k; write -P 0 0 64k; read -P 0 0 64k",
    "base.qcow2; reopen -o detect-zeroes=on; write 0 64k; write -P 0 0 64k; map",
    "; open -o driver=qcow2,foo.bar=1,file.filename=top.qcow2; open -o driver=qcow2,file.filename=top.qcow2,file.foo=1; open -o driver=blkdebug,image.filename=top.qcow2,foo=1",
    "; open -o driver=qcow2,file.filename=top.qcow2,discard=x; open -o file.filename=top.qcow2,read-only=x; open -o node-name=1x top.qcow2",
    "; open -o node-name=a,read-only=on,file.node-name=b top.qcow2; write 0 1; reopen -o node-name=a,file.node-name=b; reopen -o node-name=c; reopen -w; write 0 1; reopen -o file.node-name=c",
    "; open -o driver=qcow2,discard=off top.qcow2; write 0 1M; discard 0 64k; map; reopen -o discard=on; discard 0 64k; map",
    "; open -o driver=file,filename=disk.raw; info; write 0 512; reopen; length",
    "; open -o driver=null-co,size=64k; info; read 0 64k; length",
    "-f null-co json:{'driver':'null-co','size':65536}; reopen; info; length",
    "; open -o overlap-check.inactive-l2=on top.qcow2; write 0 1k; close; open -o overlap-check.template=all,overlap-check.main-header=off top.qcow2; write 0 1k",
    "-f qcow2 top.qcow2; reopen -o driver=qcow2,file.driver=file; reopen -o file.driver=raw; reopen -o auto-read-only=x; reopen -o backing.driver=qcow2",
    "-f qcow2 top.qcow2; reopen -o overlap-check=none; reopen -o overlap-check.template=all; reopen -o overlap-check.main-header=off; write 0 1k; reopen -o overlap-check=constant,overlap-check.template=all",
    "-f qcow2 top.qcow2; reopen -o cache-size=1M; reopen -o l2-cache-size=512k; reopen -o refcount-cache-size=256k; reopen -o cache-size=1M,l2-cache-size=64k,refcount-cache-size=64k; reopen -o cache-clean-interval=-1",
  ],
  "what cannot be resized": [
    "-f qed old.qed; truncate 512k; length; truncate 2M; length",
    "--image-opts driver=null-co,size=1M; truncate 2M; length",
  ],
  "odd numbers": [
    "-C -f qcow2 top.qcow2; info; truncate 9223372036854775807; length",
    "-f raw disk.raw; read 0 0x; read 0 0X1F; read 0 010; read 0 1.5; read 0 .5k; read 0 1.; read 0 1.k; read 0 0.1; read 0 1b; read 0 0.5b; read 0 1kk; read 0 1M1; read 0 00",
    "-f raw disk.raw; read 0 0.0001k; read 0 0.0005k; read 0 0.4999k; read 1k 1.99999999k; read 0 0b1; read 0 inf; read 0 nan; read 0 1,5; read 0 1_000; read +1 +0x5; read -- -1 5; read 0 -1",
    "-f raw disk.raw; read 8E 1; read 7E 1; read 9E 1; read 16E 1; read 9223372036854775807 0; read 18446744073709551616 1; read 0 12345678901234567890123; read 1P 1; read 0 2G",
    "-f raw disk.raw; write -P 0x 0 1; write -P 08 0 1; write -P +5 0 1; write -P 99999999999999999999 0 1; read -P 0xff 0 1; read -P -1 0 1; read -s 1 -P 5 0 4; read -l 0 -P 0 0 4; read -s 9E -P 0 0 1",
    "-f raw disk.raw; alloc -1; alloc 1 x; alloc 1 -1; alloc 8E; truncate 0.5b; truncate -m off 0.5b; truncate 1k -m off; l; truncate -m; discard 0 -1; discard 1.5 1",
    "-f raw disk.raw; writev 0 1 x; writev 0 -1; readv 0 2G; readv 0 2147483136 1; aio_write 0 x; aio_flush; aio_write -z x 1; aio_flush; aio_read 0 x; aio_flush; aio_write -P x 0 1",
    "; sigraise -1; sigraise 65; sigraise 66; sigraise 1e3; sleep 0x; sleep 1k; open -o driver disk.raw; open -o read-only disk.raw; l; reopen -o noread-only; write 0 1",
  ],
  "mistakes": [
    "disk.raw; flush 1; foo; read 0; read -x 0 1; read -P; read --foo 1 2; r -qx 1 2; map 1; quit 1 2; length",
    "-f raw disk.raw; help foo; help q; help alloc; help l; ?; help a b; help map",
    "-f raw disk.raw; break a b; resume a; remove_break a; break; sleep; sleep x; sleep -1; sleep 0x1; sigraise x; sigraise 100; sigraise 0",
    "; foo; read 0 1; sleep 1; close; help read x",
    "-f raw disk.raw;   read    0   1  ; ;read 0 1",
  ],
};

/** Drop what differs from call to call: timings. */
function withoutTimes(text: string): string {
  return text
    .replaceAll(
      /\d+ ops; [\d:.]+( sec)? \([\d.]+ [A-Za-z]+\/sec and [\d.]+ ops\/sec\)/g,
      "TIMES",
    )
    .replaceAll(/^(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$/gm, "$1,TIMES");
}

const FILES = ["disk.raw", "base.qcow2", "top.qcow2", "old.qcow2"];

/** Make the files that the calls use. */
async function prepare(cwd: string): Promise<void> {
  for (const call of SETUP) {
    await runOk(["qemu-img", ...call.split(" ")], { cwd });
  }
  await Deno.writeTextFile(`${cwd}/pattern`, "abcdefg");
  await Deno.writeTextFile(`${cwd}/empty`, "");
}

/** Run both programs, each in a folder of its own with equal files. */
async function compare(
  args: readonly string[],
  options: RunOptions = {},
  files: { [name: string]: string } = {},
): Promise<void> {
  await using dir = new TempDir();
  const [theirs, ours] = [dir.file("theirs"), dir.file("ours")];
  await Deno.mkdir(theirs);
  await prepare(theirs);
  for (const [name, text] of Object.entries(files)) {
    await Deno.writeTextFile(`${theirs}/${name}`, text);
  }
  await runOk(["cp", "-r", theirs, ours]);
  const outcome = async (program: readonly string[], cwd: string) => {
    const outcome = await run([...program, ...args], { ...options, cwd });
    return { ...outcome, stdout: withoutTimes(outcome.stdout) };
  };
  const expected = await outcome(["qemu-io"], theirs);
  assertEquals(await outcome([...BDRV, "qemu-io"], ours), expected);
  for (const name of FILES) {
    const pair = [`${ours}/${name}`, `${theirs}/${name}`];
    await runOk(["qemu-img", "compare", ...pair]);
    if (name.endsWith(".raw")) continue;
    await runOk(["qemu-img", "check", `${ours}/${name}`]);
  }
}

/** The arguments that a line of {@linkcode CALLS} stands for. */
function argumentsOf(call: string): string[] {
  const [options, ...commands] = call.split(";");
  return [
    ...options.split(" ").filter((word) => word !== ""),
    ...commands.flatMap((command) => ["-c", command]),
  ];
}

const TOOLS = ["qemu-img", "qemu-io"];

for (const [subject, calls] of Object.entries(CALLS)) {
  qemuTest(`qemu-io: ${subject}`, async (t) => {
    for (const call of calls) {
      // Without FFI, holes are not punched, and the page cache is not bypassed.
      if (isBeyond(call, /discard -C|write -zn|-n -k/.test(call))) continue;
      await t.step(call, () => compare(argumentsOf(call)));
    }
  }, TOOLS);
}

qemuTest("qemu-io: commands from standard input", async () => {
  const inputs = [
    "",
    "\n",
    "read 0 512",
    "read 0 512\n\nfoo\nlength\n",
    "length\nquit\nlength\n",
    "aio_write 0 64k\naio_flush\nread -P 0xcd 0 64k\n",
    `${"read 0 1 ".padEnd(1500)}\nlength\n`,
  ];
  for (const stdin of inputs) await compare(["-fraw", "disk.raw"], { stdin });
}, TOOLS);

qemuTest("qemu-io: breakpoints", async () => {
  const file = "blkdebug::top.qcow2";
  const commands = [
    "break write_aio A",
    "break nothing A",
    "aio_write -P 5 0 64k",
    "wait_break A",
    "resume B",
    "resume A",
    "aio_flush",
    "break write_aio C",
    "remove_break C",
    "remove_break C",
    "write -P 6 0 64k",
  ];
  await compare(
    argumentsOf(["-f qcow2", file].join(" ") + `;${commands.join(";")}`),
  );
}, TOOLS);

qemuTest("qemu-io: reopening keeps nodes in place", async () => {
  const rules = `[inject-error]
event = "write_aio"
errno = "28"
once = "on"

[set-state]
event = "flush_to_disk"
state = "1"
new_state = "2"

[inject-error]
event = "l2_load"
state = "2"
errno = "5"
once = "on"
`;
  const call = "-f qcow2 blkdebug:rules:top.qcow2; write 0 1k; write 0 1k; " +
    "reopen -o lazy-refcounts=on; write 0 1k; reopen -r; read 0 1k; " +
    "reopen -w; write 0 1k; break write_aio A; reopen; aio_write 0 1k; " +
    "wait_break A; resume A; aio_flush; reopen -o lazy-refcounts=off; map";
  const files = { rules };
  await compare(argumentsOf(call), {}, files);
  // Options that make no sense change nothing that is in force.
  await compare(
    argumentsOf(
      "-f qcow2 blkdebug:rules:top.qcow2; reopen -o overlap-check=x; " +
        "reopen -o l2-cache-size=x; write 0 1k; write 0 1k; reopen -r -o foo=1",
    ),
    {},
    files,
  );
}, TOOLS);

qemuTest("qemu-io: signals end it at once", async () => {
  for (const command of ["abort", "sigraise 9", "sigraise 15"]) {
    await compare([
      "-c",
      "write 0 1k",
      "-c",
      command,
      "-c",
      "length",
      "disk.raw",
    ]);
  }
}, TOOLS);

qemuTest("qemu-io: thousands of commands in a row", async () => {
  const lines = Array.from(
    { length: 4000 },
    (_, i) => `${i % 2 ? "read" : "write"} -P ${i % 2} ${i * 700 % 1000000} 1k`,
  );
  await compare(["-t", "writeback", "-f", "qcow2", "top.qcow2"], {
    stdin: `${lines.join("\n")}\n`,
  });
}, TOOLS);

Deno.test("qemu-io: invalid options", async () => {
  const mistakes = {
    "--foo": "unrecognized option '--foo'",
    "-y": "invalid option -- 'y'",
    "-f": "option requires an argument -- 'f'",
    "--cmd": "option '--cmd' requires an argument",
    "--c": "option '--c' is ambiguous; " +
      "possibilities: '--cmd' '--copy-on-read' '--cache'",
    "--read-only=x": "option '--read-only' doesn't allow an argument",
  };
  for (const [option, message] of Object.entries(mistakes)) {
    const { code, stdout, stderr } = await run([...BDRV, "qemu-io", option]);
    assertEquals([code, stderr], [1, `qemu-io: ${message}\n`]);
    assertEquals(
      stdout.split("\n")[0],
      "Usage: qemu-io [OPTIONS]... [-c STRING]... [file]",
    );
  }
});

Deno.test("bdrv io is qemu-io under our own name", async () => {
  await using dir = new TempDir();
  const file = dir.file("disk.raw");
  await Deno.writeTextFile(file, "x".repeat(512));
  const call = [...BDRV, "io"];
  const stdin = "read -qP 0x78 0 512\nfoo\nopen nothing\nlength\n";
  const { code, stdout, stderr } = await run(
    [...call, "-f", "raw", file],
    { stdin },
  );
  assertEquals([code, stdout], [
    1,
    "bdrv> bdrv> bdrv> bdrv> 512 bytes\nbdrv> ",
  ]);
  assertEquals(
    stderr,
    'command "foo" not found\n' +
      "bdrv: file open already, try 'help close'\n",
  );
  const help = await run([...call, "--help"]);
  assertEquals(help.stdout.split("\n")[0], "Usage: bdrv io [OPTIONS] [FILE]");
  const mistake = await run([...call, "--foo"]);
  assertEquals(
    mistake.stderr,
    "bdrv: unrecognized option '--foo'\n" +
      "Try 'bdrv io --help' for more information\n",
  );
});
