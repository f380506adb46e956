/** `snapshot`: list, take, apply or delete snapshots. @module */
import "../../drivers/writing.ts";
import {
  asBlockError,
  BlockError,
  errno,
  reasonOf,
  strerror,
} from "../../core/errors.ts";
import type { SnapshotOperations } from "../../core/node.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  QUIET,
} from "../command.ts";
import { openImageArgument, usingNodes } from "../images.ts";
import { CommandError, usageError } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";
import { snapshotList } from "../snapshots.ts";

/** The command. */
export const command: Command = {
  summary: "List, take, apply or delete snapshots within an image",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    { short: "l", long: "list", help: "list the snapshots (the default)" },
    {
      short: "a",
      long: "apply",
      argument: "SNAPSHOT",
      help: "revert the disk to a snapshot",
    },
    {
      short: "c",
      long: "create",
      argument: "NAME",
      help: "take a snapshot of the disk",
    },
    {
      short: "d",
      long: "delete",
      argument: "NAME",
      help: "delete a snapshot",
    },
  ],

  async run(invocation) {
    const { program } = invocation;
    const { action: given, name } = parse(invocation);
    // Without an action, old releases of QEMU open the image for writing and do
    // nothing.
    const action = given ??
      (program.isOurs ? "l" : inRelease("snapshotDefault"));
    const [file] = invocation.operands;
    const node = await openImageArgument(program, file, {
      ...invocation.image,
      writable: action !== "l",
    });
    return await usingNodes([node], async () => {
      const { snapshots } = node;
      if (action === undefined) return 0;
      if (!snapshots) {
        if (action === "l") return 0;
        throw program.isOurs
          ? new CommandError(`Format '${node.driver.name}' has no snapshots`)
          : unsupported(action, name!);
      }
      if (action === "l") {
        const list = await snapshots.list();
        if (list.length > 0) {
          const lines = ["Snapshot list:", ...snapshotList(list)];
          program.print(lines.map((line) => `${line}\n`).join(""));
        }
      } else {
        await ACTIONS[action](snapshots, name!);
      }
      return 0;
    });
  },
};

/** Cut a name to 255 bytes, as QEMU does. */
function shortened(name: string): string {
  const bytes = new TextEncoder().encode(name).subarray(0, 255);
  return new TextDecoder().decode(bytes).replace(/\ufffd$/, "");
}

const ACTIONS = {
  async c(snapshots: SnapshotOperations, name: string) {
    try {
      await snapshots.create({ name: shortened(name), icount: 0n });
    } catch (thrown) {
      throw notCreated(name, asBlockError(thrown));
    }
  },
  async a(snapshots: SnapshotOperations, name: string) {
    try {
      await snapshots.apply(name);
    } catch (thrown) {
      const { code, message } = asBlockError(thrown);
      // Refusals because of bitmaps come before the snapshot is looked up.
      if (code === "EBUSY") throw failed("apply", name, message);
      const why = strerror(code);
      // A missing snapshot has no further cause to print.
      const isPlain = message === why || code === "ENOENT";
      const detail = isPlain ? "" : `${message}\n`;
      throw failed("apply", name, `Failed to load snapshot: ${why}`, detail);
    }
  },
  async d(snapshots: SnapshotOperations, name: string) {
    const found = (await snapshots.list()).find((one) => one.name === name);
    if (!found) throw failed("delete", name, "snapshot not found");
    try {
      await snapshots.delete(found.id);
    } catch (thrown) {
      throw failed("delete", name, asBlockError(thrown).message);
    }
  },
};

/** QEMU's refusal for a format without snapshots. */
function unsupported(action: keyof typeof ACTIONS, name: string): CommandError {
  if (action === "c") return notCreated(name, new BlockError("ENOTSUP"));
  return action === "a"
    ? failed("apply", name, "Block driver does not support snapshots")
    : failed("delete", name, "snapshot not found");
}

function notCreated(name: string, error: BlockError): CommandError {
  const why = reasonOf(error);
  const numbered = `${-errno(error.code)} (${why})`;
  return failed("create", name, inRelease("snapshotErrno") ? numbered : why);
}

function failed(
  verb: string,
  name: string,
  why: string,
  detail = "",
): CommandError {
  return new CommandError(
    `${detail}Could not ${verb} snapshot '${name}': ${why}`,
  );
}

function parse(invocation: Invocation) {
  let action: "l" | keyof typeof ACTIONS | undefined;
  let name: string | undefined;
  for (const [option, argument] of invocation.options()) {
    if (
      option === "l" || option === "a" || option === "c" || option === "d"
    ) {
      if (action) throw usageError("Cannot mix '-l', '-a', '-c', '-d'");
      [action, name] = [option, argument];
    }
  }
  invocation.expectOneImage();
  return { action, name };
}
