/**
 * `Symbol.dispose` and `Symbol.asyncDispose` for engines that lack them, such
 * as Safari 18; lowered code looks for the same ones. Import this before
 * defining a method by such a name.
 *
 * @module
 */
for (const name of ["dispose", "asyncDispose"] as const) {
  if (Symbol[name]) continue;
  Object.defineProperty(Symbol, name, { value: Symbol.for(`Symbol.${name}`) });
}
