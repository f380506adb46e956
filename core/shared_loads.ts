/**
 * Parts of tables being loaded: whoever needs one waits for whoever reads it
 * already. Over a network, a second read would take as long again; and a read
 * that ends late could bring back what has been changed, written and evicted
 * meanwhile.
 *
 * @module
 */

/** Loads under way, by key. */
export class SharedLoads {
  readonly #pending = new Map<number, Promise<void>>();

  /**
   * Load something, unless that is under way.
   *
   * @param keep Receives it; not called if it is outdated by then.
   */
  run<T>(
    key: number,
    load: () => Promise<T>,
    keep: (loaded: T) => void,
  ): Promise<void> {
    const pending = this.#pending.get(key);
    if (pending) return pending;
    const isCurrent = () => this.#pending.get(key) === loading;
    const loading: Promise<void> = load().then((loaded) => {
      if (isCurrent()) keep(loaded);
    }).finally(() => {
      if (isCurrent()) this.#pending.delete(key);
    });
    this.#pending.set(key, loading);
    return loading;
  }

  /** The file has been rewritten: what is being read is outdated. */
  forget(): void {
    this.#pending.clear();
  }
}
