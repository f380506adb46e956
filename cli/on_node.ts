/**
 * What the command line needs on Node.js and Bun.
 *
 * @module
 */
import "../core/platform/on_node.ts";
