/**
 * The map of a fixed image: the disk is the file, without the footer.
 *
 * @module
 */
import type { Place, Run } from "../../core/block_map.ts";
import { BlockError } from "../../core/errors.ts";
import type { FormatMap } from "../../core/mapped_node.ts";
import type { BlockNode } from "../../core/node.ts";

/** Maps the whole disk to the file, at the same offsets. */
export class FixedMap implements FormatMap {
  readonly unit = 4096;
  #file: BlockNode;

  constructor(file: BlockNode) {
    this.#file = file;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  lookup(offset: number, length: number): Run & Place {
    return { length, kind: "data", child: this.#file, childOffset: offset };
  }

  find(offset: number, length: number): Promise<Run> {
    return Promise.resolve(this.lookup(offset, length));
  }

  inPlace(offset: number, length: number): Place {
    return this.lookup(offset, length);
  }

  allocate(): never {
    throw new BlockError(
      "EINVAL",
      "A fixed image has room for all of its disk",
    );
  }

  mayHaveHoles(): boolean {
    return true;
  }

  async flush(): Promise<void> {
    await this.#file.flush?.();
  }
}
