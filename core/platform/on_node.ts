/**
 * Provides the platforms Node.js and Bun; import it before opening anything.
 *
 * @module
 */
import { provided } from "./mod.ts";
import { nodePlatform } from "./node.ts";
import { nodeProcess } from "./node_process.ts";

provided.platform = nodePlatform;
provided.process = nodeProcess;
