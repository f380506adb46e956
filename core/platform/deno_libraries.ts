/**
 * Libraries of the system through `Deno.dlopen`, on Linux.
 *
 * @module
 */
import type { Libraries, NativeCallback } from "./platform.ts";

/**
 * Paths where distributions keep a library, as far as they may be opened.
 * Permissions are for absolute paths, and most systems have two; the loader,
 * given a name, finds libraries elsewhere as well.
 */
export function* libraryPlaces(file: string): Generator<string> {
  if (Deno.build.os !== "linux") return;
  const triple = `${Deno.build.arch}-linux-gnu`;
  const folders = [`/lib/${triple}`, "/lib64", `/usr/lib/${triple}`]
    .concat("/usr/lib64", "/lib", "/usr/lib");
  for (const folder of folders) {
    const path = `${folder}/${file}`;
    if (isGranted({ name: "ffi", path })) yield path;
  }
  if (isGranted({ name: "ffi" })) yield file;
}

function isGranted(permission: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(permission).state === "granted";
}

/** Binds functions; workers get this as text. */
const open: Libraries["open"] = (path, functions) =>
  Deno.dlopen(path, functions as Deno.ForeignLibraryInterface);

const found = new Map<string, string | null>();

export const libraries: Libraries = {
  open,
  isPermitted: (file) => libraryPlaces(file).next().done !== true,
  find(file) {
    let path = found.get(file);
    if (path === undefined) found.set(file, path = find(file));
    return path;
  },
  addressOf(bytes) {
    const pointer = Deno.UnsafePointer.of(bytes as Uint8Array<ArrayBuffer>);
    return Deno.UnsafePointer.value(pointer);
  },
  callback(parameters, call) {
    if (!isGranted({ name: "ffi" })) return null;
    return Deno.UnsafeCallback.threadSafe(
      { parameters: parameters as Deno.NativeType[], result: "i32" },
      call as (...values: unknown[]) => number,
    ) as NativeCallback;
  },
};

function find(file: string): string | null {
  for (const path of libraryPlaces(file)) {
    try {
      Deno.dlopen(path, {}).close();
      return path;
    } catch {
      // Try the next place.
    }
  }
  return null;
}
