/**
 * What the worker has open, and what can be done with it.
 *
 * @module
 */
import type { BlockNode } from "../core/node.ts";
import type { Overlay } from "./edits.ts";
import type { Meter } from "./meter.ts";
import type { Opened } from "./opening.ts";

/** An image that is shown, with the user's edits. */
export class Session {
  readonly opened: Opened;
  /** The name of the file of edits. */
  readonly overlayFile: string;
  readonly meter: Meter;
  /** What the user has changed of it, on top of it. */
  overlay?: Overlay;

  constructor(
    opened: Opened,
    meter: Meter,
    overlayFile: string,
    overlay?: Overlay,
  ) {
    this.opened = opened;
    this.meter = meter;
    this.overlayFile = overlayFile;
    this.overlay = overlay;
  }

  /** The disk that is shown. */
  get disk(): BlockNode {
    return (this.overlay ?? this.opened).image.node;
  }

  /** Its data, which is not all there without its whole backing chain. */
  get content(): BlockNode {
    refuseIncomplete(this.opened);
    return this.disk;
  }

  async close(): Promise<void> {
    await this.overlay?.close();
    await this.opened.close();
  }
}

/** Refuse to work on data of which a part is missing. */
export function refuseIncomplete({ chain }: Opened): void {
  const missing = chain.find((layer) => layer.missing !== undefined);
  if (!missing) return;
  throw new Error(
    `Part of the data is in '${missing.name}', which is not at hand: ` +
      missing.missing,
  );
}
