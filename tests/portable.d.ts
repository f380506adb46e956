// deno-lint-ignore-file no-explicit-any
/**
 * Stands in for Deno's types when portable code is checked without them. Only
 * `core/platform/deno*.ts` may use it (tests/imports.ts).
 */
declare namespace Deno {
  type DynamicLibrary<_Functions> = { symbols: any };
  type FileInfo = any;
  type ForeignLibraryInterface = any;
  type FsFile = any;
  type NativeType = any;
  type PermissionDescriptor = any;
  type PointerValue = any;
  type SeekMode = any;
  type Signal = any;
}
declare const Deno: any;
