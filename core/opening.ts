/**
 * The state of a stack while it is being opened.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import type { ImplicitOpen } from "./gate.ts";
import type { GraphNode, KeptNode } from "./graph.ts";
import type { BlockNode } from "./node.ts";
import type { OpenOptions } from "./open_options.ts";
import type { OptionValues } from "./options.ts";
import type { OpenPurpose } from "./traits.ts";

/** Settings for a whole stack. */
export interface Opening {
  options: OpenOptions;
  /**
   * The source that the user asked for: images may name files in its folder.
   */
  source: unknown;
  /** Nodes to be reused. */
  kept?: readonly KeptNode[];
  /** How many archives and compressed files have been opened so far. */
  unpacked?: number;
}

/** An image of a backing chain, linked to those above it. */
export interface ChainLink {
  /** Its canonical name. */
  readonly name: string;
  readonly above?: ChainLink;
  /** Length of the chain down to this image. */
  readonly length: number;
}

/** A position in the stack. */
export interface Place {
  /** How many descriptions enclose it. */
  depth: number;
  readOnly: boolean;
  /** Whether to share all access, if an option says so. */
  forceShare?: boolean;
  /** Whether to bypass the page cache, if an option says so. */
  direct?: boolean;
  /** Whether to ignore flushes, if an option says so. */
  noFlush?: boolean;
  /** The images of the backing chain above. */
  chain?: ChainLink;
  /** Whether to probe the format of the child `file`. */
  probeFile?: boolean;
  /** What an image names, at or above this place; else the user named it. */
  named?: { request: ImplicitOpen; file: BlockNode | undefined };
}

/** A node about to be opened, and its children that are already open. */
export interface Pending {
  driver: BlockDriver;
  /** The driver's options, without the generic ones. */
  options: OptionValues;
  filename: string;
  /** Whether its format was found by probing. */
  probed: boolean;
  purpose: OpenPurpose;
  opening: Opening;
  place: Place;
  /** Its entry in the graph. */
  inGraph: GraphNode;
  /** Open a child, to be closed if the node cannot be opened. */
  open(
    child: string,
    source: unknown,
    place: Place,
    wantProtocol: boolean,
  ): Promise<BlockNode>;
}
