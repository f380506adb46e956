/**
 * What lasts from one command of `qemu-io` to the next.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { Image } from "../../core/image.ts";
import type { ReopenOptions } from "../../core/reopen.ts";
import type { Program } from "../program.ts";
import { BackgroundRequests } from "./background.ts";
import { type Opening, openNode } from "./opening.ts";

/** The file that is open, and the requests under way. */
export class Session {
  /** Whether the program is to end. */
  hasQuit = false;
  /** Requests that were started and not waited for. */
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

  /** The file that is open. Commands run only with one if they need it. */
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
   * Go on with the same file, opened in another way; if that fails, as it was.
   *
   * @param opening How it is opened then, of which `changes` differ.
   */
  async reopen(opening: Opening, changes: ReopenOptions): Promise<void> {
    await this.background.drain();
    await this.image.reopen(changes);
    this.#opening = opening;
  }

  /**
   * Finish what is under way, and close the file if one is open. What goes
   * wrong then is told, but is no command's failure.
   *
   * @returns whether all that was written is known to be there.
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
