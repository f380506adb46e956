/**
 * What the worker has opened, and the operations on it.
 *
 * @module
 */
import type { BlockNode } from "../core/node.ts";
import type { Overlay } from "./edits.ts";
import type { Place } from "./messages.ts";
import type { Meter } from "./meter.ts";
import type { Opened, Passphrases } from "./opening.ts";

/** An image that is shown, with the user's edits. */
export class Session {
  readonly place: Place;
  readonly passphrases: Passphrases;
  readonly opened: Opened;
  /** The name of the file of edits. */
  readonly overlayFile: string;
  readonly meter: Meter;
  /** What the user has changed of it, on top of it. */
  overlay?: Overlay;

  constructor(
    place: Place,
    passphrases: Passphrases,
    opened: Opened,
    meter: Meter,
    overlayFile: string,
  ) {
    this.place = place;
    this.passphrases = passphrases;
    this.opened = opened;
    this.meter = meter;
    this.overlayFile = overlayFile;
  }

  /** The disk that is shown. */
  get disk(): BlockNode {
    return (this.overlay ?? this.opened).image.node;
  }

  /** Its data, which takes its whole backing chain, and all passphrases. */
  get content(): BlockNode {
    refuseIncomplete(this.opened);
    return this.disk;
  }

  /** What edits are encrypted with, which hold parts of the image: as it is. */
  get overlayKey(): string | undefined {
    return [...this.passphrases.values()][0];
  }

  async close(): Promise<void> {
    await this.overlay?.close();
    await this.opened.close();
  }
}

/** Refuse to work on data of which a part is missing, or locked. */
export function refuseIncomplete({ chain, locked }: Opened): void {
  if (locked !== undefined) {
    throw new Error(`'${locked}' is encrypted, and its passphrase is needed`);
  }
  const missing = chain.find((layer) => layer.missing !== undefined);
  if (!missing) return;
  throw new Error(
    `Part of the data is in '${missing.name}', which is not at hand: ` +
      missing.missing,
  );
}
