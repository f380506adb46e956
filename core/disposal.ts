/**
 * `Symbol.dispose` and `Symbol.asyncDispose` where an engine has none yet, as
 * Safari 18. What was lowered for it looks for the same ones. Whoever defines a
 * method by such a name imports this first.
 *
 * @module
 */
for (const name of ["dispose", "asyncDispose"] as const) {
  if (Symbol[name]) continue;
  Object.defineProperty(Symbol, name, { value: Symbol.for(`Symbol.${name}`) });
}
