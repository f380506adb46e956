/**
 * Provides what Node.js and Bun have; to be imported before anything is opened.
 *
 * @module
 */
import { provided } from "./mod.ts";
import { nodePlatform } from "./node.ts";
import { nodeProcess } from "./node_process.ts";

provided.platform = nodePlatform;
provided.process = nodeProcess;
