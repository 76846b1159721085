// A row of the bench's table: what was asked, of whom, what it cost, and which goal it answers.

/** Rows of section 5 of the performance goals, by name. `iter` and `nested`: at least so many times as fast. */
export const GOALS = {
  'zap whole guest, 64 and 256 GiB 4K, 50% random': { iter: 300, nested: 20 },
  'zap whole guest, 64 GiB 4K, uniform': { iter: 2000, nested: 200, nsPerOperation: 20_000 },
  'zap 1 GiB ranges': { iter: 150 },
  'zap 2 MiB ranges': { iter: 20, nested: 4 },
  'zap 64 KiB ranges': { iter: 1.8 },
  'zap 4 KiB random': { iter: 0.9 },
  'age whole guest, 50% random': { iter: 80, nested: 4 },
  'same algorithm, Wasm A vs native A (tdp_iter)': { iter: 0.5 },
  'bytes per guest 4K page, mixed, up to four planes': { bytesPerPage: 0.55 },
  'bytes per guest 4K page, mixed, eight planes': { bytesPerPage: 1.1 },
  'bytes per guest 4K page, uniform': { bytesPerPage: 0.02 },
  'largest guest in one 4 GiB memory, all 4K': {},
  'small operations from JS, full API with its checks': { perSecond: 10e6 },
  '16-byte trace, emitted and read by JS': { perSecond: 150e6 },
  'wasm size, gzip': { bytes: 20 * 1024 },
  'first compile + instance in Node': { nsPerOperation: 5e6 },
  'createVm of a 1 TiB guest': { nsPerOperation: 20e6 },
} as const satisfies Record<string, GoalLimits>;
export type Goal = keyof typeof GOALS;

export interface GoalLimits {
  iter?: number;
  nested?: number;
  nsPerOperation?: number;
  bytesPerPage?: number;
  bytes?: number;
  perSecond?: number;
}

export interface Row {
  /** The bench file that asked. */
  question: string;
  guestBytes: number;
  density: string;
  /** zap-whole, zap-1GiB, zap-2MiB, zap-64KiB, zap-4KiB, age-whole and the like. */
  operation: string;
  /** 4k, 2m, mixed or 1g. */
  leaves: string;
  roots: string;
  /** Planes that differ within leaf tables, at most. */
  planes: number;
  contender: string;
  nsPerPage: number | null;
  nsPerOperation: number | null;
  /** Native time over this contender's: above 1 it is faster than native. Null where native did not run. */
  ratioToNativeIter: number | null;
  ratioToNativeNested: number | null;
  /** Layout A's tdp_iter, WebAssembly's speed over C's, in this row's run: what the code costs, data structure apart. */
  ratioSameAlgorithm: number | null;
  goal: Goal | null;
  /** Whether the goal is met; null without a goal, and in a quick run. */
  met: boolean | null;
  /** random or sequential, of ranges. */
  order?: string;
  operations?: number;
  samples?: number;
  /** First and third quartile of nsPerOperation. */
  spread?: [number, number];
  bytesPerPage?: number;
  bytes?: number;
  perSecond?: number;
  note?: string;
}

/** A row with everything that was not asked left null. */
export function row(given: Partial<Row> & Pick<Row, 'question' | 'operation' | 'contender'>): Row {
  const whole: Row = {
    guestBytes: 0,
    density: 'full',
    leaves: '4k',
    roots: 'direct',
    planes: 0,
    nsPerPage: null,
    nsPerOperation: null,
    ratioToNativeIter: null,
    ratioToNativeNested: null,
    ratioSameAlgorithm: null,
    goal: null,
    met: null,
    ...given,
  };
  if (whole.goal !== null) whole.met = isMet(whole, GOALS[whole.goal]);
  return whole;
}

type Ratios = Pick<Row, 'ratioToNativeIter' | 'ratioToNativeNested' | 'ratioSameAlgorithm'>;

/** The three ratios of a row that took `ns`; `nsOf` says what a contender of the same run took, null if it had no part. */
export function ratiosOf(ns: number, nsOf: (contender: string) => number | null): Ratios {
  const over = (theirs: number | null, ours: number | null) =>
    theirs === null || ours === null ? null : theirs / ours;
  const iter = nsOf('native tdp_iter');
  return {
    ratioToNativeIter: over(iter, ns),
    ratioToNativeNested: over(nsOf('native nested'), ns),
    ratioSameAlgorithm: over(iter, nsOf('wasm layout A tdp_iter')),
  };
}

function isMet(found: Row, limits: GoalLimits): boolean {
  const least = (value: number | null | undefined, limit: number | undefined) =>
    limit === undefined || (value != null && value >= limit);
  const most = (value: number | null | undefined, limit: number | undefined) =>
    limit === undefined || (value != null && value <= limit);
  return (
    least(found.ratioToNativeIter, limits.iter) &&
    least(found.ratioToNativeNested, limits.nested) &&
    least(found.perSecond, limits.perSecond) &&
    most(found.nsPerOperation, limits.nsPerOperation) &&
    most(found.bytesPerPage, limits.bytesPerPage) &&
    most(found.bytes, limits.bytes)
  );
}

/** What a bench is run with. */
export interface BenchContext {
  quick: boolean;
  /** Only guests of this size, where a bench has several (ranges). */
  guestBytes?: number;
  /** Compiled native.c, or why not. */
  native: { program: string } | { skipped: string };
  say(line: string): void;
}
export type Bench = (context: BenchContext) => Promise<Row[]>;

/** A call that cannot be carried out: the message says all there is to say. */
export class UsageError extends Error {}

// --- Statistics ------------------------------------------------------------------------------------------------------

/** The value at `part` (0 to 1) of sorted values, between neighbours in proportion. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * part;
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}
export const median = (values: readonly number[]): number => quantile(values, 0.5);
export const spreadOf = (values: readonly number[]): [number, number] => [
  quantile(values, 0.25),
  quantile(values, 0.75),
];
