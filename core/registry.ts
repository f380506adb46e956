/**
 * The registered drivers.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import type { OptionValues } from "./options.ts";
import type { FileInfo } from "./platform/files.ts";
import { platform } from "./platform/mod.ts";
import type { DriverTables, DriverTraits } from "./traits.ts";
import { isPlainObject, valueText } from "./values.ts";

const drivers = new Map<string, BlockDriver>();

/**
 * Register a driver under its name.
 *
 * @throws {BlockError} EEXIST if another driver has that name, EINVAL for
 * anything but a driver.
 *
 * @example
 * ```ts
 * import { type BlockDriver, getDriver, registerDriver } from "@bdrv/bdrv";
 * const driver: BlockDriver = {
 *   name: "my-driver",
 *   role: "filter",
 *   open: (_options, context) => context.openChild("file"),
 * };
 * registerDriver(driver);
 * console.log(getDriver("my-driver").role); // filter
 * ```
 *
 * @category Drivers
 */
export function registerDriver(driver: BlockDriver): void {
  try {
    checkDriver(driver);
  } catch (error) {
    throw asBlockError(error);
  }
  const known = drivers.get(driver.name);
  if (known && known !== driver) {
    throw new BlockError(
      "EEXIST",
      `Cannot register driver '${driver.name}': another one has that name`,
    );
  }
  drivers.set(driver.name, driver);
}

/**
 * Register a driver of the package, unless one of its name is registered: the
 * driver itself, or its stand-in.
 */
export function provideDriver(driver: BlockDriver): void {
  if (!drivers.has(driver.name)) drivers.set(driver.name, driver);
  provided.add(driver);
}

/** Drivers of the package: the tests make sure of what others are asked for. */
const provided = new WeakSet<BlockDriver>();

/** Whether a driver is one of the package. */
export function isProvided(driver: BlockDriver): boolean {
  return provided.has(driver);
}

/** What is known of a driver before it is loaded. */
export type DriverFacts = Omit<BlockDriver, "open" | "load">;

/**
 * A driver whose code is loaded on first use. The facts given here apply to the
 * loaded driver too, whose own file does not repeat them.
 */
export function lazily(
  facts: DriverFacts,
  load: () => Promise<BlockDriver>,
): BlockDriver {
  const loadWhole = async () => {
    const driver = await load();
    return Object.assign(driver, { ...facts, ...driver });
  };
  return {
    ...facts,
    load: loadWhole,
    open: async (options, context) =>
      await (await loadWhole()).open(options, context),
  };
}

function refuse(why: string): BlockError {
  return invalid(`Cannot register a driver: ${why}`);
}

const ROLES: readonly unknown[] = ["protocol", "format", "filter"];

/** Refuse anything but a driver; only its `open` is mandatory. */
function checkDriver(driver: BlockDriver): void {
  const { name, role, open, load, create, probe, schemes = [] } = driver ?? {};
  if (typeof name !== "string" || name === "") {
    throw refuse(`its name is ${valueText(name)}`);
  }
  if (!ROLES.includes(role)) {
    throw refuse(`the role of '${name}' is ${valueText(role)}`);
  }
  const { loadTables } = driver;
  for (
    const [verb, value] of Object.entries(
      { open, load, loadTables, create, probe },
    )
  ) {
    if (
      typeof value === "function" || (value === undefined && verb !== "open")
    ) {
      continue;
    }
    throw refuse(`the '${verb}' of '${name}' is ${valueText(value)}`);
  }
  checkTables(name, driver);
  if (!Array.isArray(schemes)) {
    throw refuse(`the schemes of '${name}' are ${valueText(schemes)}`);
  }
}

function checkTables(name: string, tables: DriverTables): void {
  const { openOptions = {}, createOptions = {} } = tables;
  for (const table of [openOptions, createOptions]) {
    if (isPlainObject(table)) continue;
    throw refuse(`the options of '${name}' are ${valueText(table)}`);
  }
}

/**
 * The driver with a name.
 *
 * @throws {BlockError} EINVAL if there is none.
 *
 * @category Drivers
 */
export function getDriver(name: string): BlockDriver {
  const driver = drivers.get(name);
  if (!driver) throw invalid(`Unknown driver ${valueText(name)}`);
  return driver;
}

/**
 * The driver of a format to be created, loaded.
 *
 * @throws {BlockError} EINVAL if there is none.
 */
export async function loadFormat(name: string): Promise<BlockDriver> {
  const driver = drivers.get(name);
  if (!driver) throw invalid(`Unknown file format ${valueText(name)}`);
  return await loadDriver(driver);
}

/**
 * The loaded driver, with its option tables, given the driver or its stand-in.
 *
 * @throws {BlockError} if it cannot be loaded; EINVAL if another driver is
 * loaded instead.
 *
 * @example
 * ```ts
 * import { assert } from "@std/assert";
 * import { getDriver, loadDriver } from "@bdrv/bdrv";
 * const driver = await loadDriver(getDriver("vmdk"));
 * assert("subformat" in driver.createOptions!);
 * ```
 *
 * @category Drivers
 */
export async function loadDriver(driver: BlockDriver): Promise<BlockDriver> {
  const whole = driver.load ? await loadCode(driver) : driver;
  await loadTables(whole);
  return whole;
}

/**
 * The driver, with all that it takes to open a node with these options, the
 * generic ones left out.
 */
export async function loadForOpening(
  driver: BlockDriver,
  options: OptionValues,
): Promise<BlockDriver> {
  const whole = driver.load ? await loadCode(driver) : driver;
  const { childNames = [] } = whole;
  const hasOwn = Object.keys(options).some((it) => !childNames.includes(it));
  if (hasOwn) await loadTables(whole);
  return whole;
}

async function loadCode(driver: BlockDriver): Promise<BlockDriver> {
  const { name } = driver;
  try {
    const whole = await driver.load!();
    if (isProvided(driver)) provided.add(whole);
    else checkDriver(whole);
    if (whole.name !== name || whole.load) {
      throw invalid(`What it loads stands for '${whole.name}'`);
    }
    if (drivers.get(name) === driver) drivers.set(name, whole);
    return whole;
  } catch (error) {
    throw cannotLoad(name, error);
  }
}

/**
 * Have a driver, which nodes may refer to already, get its option tables.
 *
 * @throws {BlockError} if they cannot be loaded; EINVAL if they are none.
 */
export async function loadTables(driver: DriverTraits): Promise<void> {
  if (!driver.loadTables) return;
  try {
    const tables = await driver.loadTables();
    checkTables(driver.name, tables);
    Object.assign(driver, tables, { loadTables: undefined });
  } catch (error) {
    throw cannotLoad(driver.name, error);
  }
}

function cannotLoad(name: string, error: unknown): BlockError {
  return asBlockError(error).prefixed(`Cannot load the driver '${name}': `);
}

/**
 * The driver with a name, or `undefined`.
 *
 * @category Drivers
 */
export function findDriver(name: string): BlockDriver | undefined {
  return drivers.get(name);
}

/**
 * All usable drivers, sorted by name.
 *
 * @category Drivers
 */
export function listDrivers(): BlockDriver[] {
  return [...drivers.values()].filter(({ isAbsent }) => !isAbsent)
    .sort((a, b) => a.name < b.name ? -1 : 1);
}

/** The protocol that `scheme:` selects, or `undefined`. */
export function findProtocol(scheme: string): BlockDriver | undefined {
  return [...drivers.values()].find((driver) =>
    driver.role !== "format" &&
    (driver.name === scheme || driver.schemes?.includes(scheme))
  );
}

/** The protocol of a file name without a scheme. */
export function protocolOf(filename: unknown): BlockDriver {
  let found: BlockDriver | undefined;
  if (typeof filename === "string") {
    const info = statOf(filename);
    for (const driver of drivers.values()) {
      if (driver.isAbsent || !driver.claimsFile?.(filename, info)) continue;
      // Of several, the first by name.
      if (!found || driver.name < found.name) found = driver;
    }
  }
  return found ?? getDriver("file");
}

/** What a path leads to, if we may know. */
function statOf(path: string): FileInfo | undefined {
  try {
    return platform().files?.stat(path);
  } catch {
    return undefined;
  }
}
