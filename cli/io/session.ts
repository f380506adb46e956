/**
 * The state of `qemu-io` between commands.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { Image } from "../../core/image.ts";
import type { ReopenOptions } from "../../core/reopen.ts";
import type { Program } from "../program.ts";
import { BackgroundRequests } from "./background.ts";
import { type Opening, openNode } from "./opening.ts";

/** The open file, and the requests under way. */
export class Session {
  /** Whether the program is to end. */
  hasQuit = false;
  /** Requests running in the background. */
  readonly background: BackgroundRequests;
  #image: Image | undefined;
  #opening: Opening | undefined;

  /** `imageOpts`: whether files are given as lists of options. */
  constructor(readonly program: Program, readonly imageOpts: boolean) {
    this.background = new BackgroundRequests(program);
  }

  /** Whether a file is open. */
  get isOpen(): boolean {
    return this.#image !== undefined;
  }

  /** The open file. Commands that need one run only if there is one. */
  get image(): Image {
    return this.#image!;
  }

  /** How it was opened. */
  get opening(): Opening {
    return this.#opening!;
  }

  /** Open a file. */
  async open(opening: Opening): Promise<void> {
    const node = await openNode(this.program, opening);
    this.#image = new Image(node, { cache: opening.cache });
    this.#opening = opening;
  }

  /**
   * Reopen the file in another way; if that fails, it stays as it was.
   *
   * @param opening How it will be open; `changes` are the differences.
   */
  async reopen(opening: Opening, changes: ReopenOptions): Promise<void> {
    await this.background.drain();
    await this.image.reopen(changes);
    this.#opening = opening;
  }

  /**
   * Finish background requests, and close the file if one is open. Errors are
   * reported, but fail no command.
   *
   * @returns whether all writes are known to be durable.
   */
  async close(): Promise<boolean> {
    await this.background.drain();
    const image = this.#image;
    this.#image = undefined;
    try {
      await image?.close();
      return true;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.program.error(this.program.messageOf(error));
      return false;
    }
  }
}
