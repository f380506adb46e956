/**
 * What a wrong order of writes is. @module
 */

/** A wrong order: texts of a file, each in place of another. */
export interface WrongOrder {
  /** What comes before what. */
  readonly what: string;
  readonly file: string;
  readonly changes: readonly (readonly [from: string, to: string])[];
  /** The driver whose tests must notice. Default: that of the file. */
  readonly driver?: string;
}

/** Lines change places. */
export const swapped = (first: string, second: string, between = "") =>
  [first + between + second, second + between + first] as const;
