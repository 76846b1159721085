// How one row is taken of several contenders, so that each answers for the same work under the same conditions.
//
// Contenders alternate within each round, each on tables filled anew, and what they did is compared after each. What is
// read back belongs to the time: 1,000 seeded sptes after a whole guest, the count and one spte after each range.

import type { Contender, Outcome, Walk } from './peers/contender.ts';
import { type Goal, median, type Row, ratiosOf, row, spreadOf } from './rows.ts';
import { GIB, type Guest, gfnsToRead, type Order, pagesOf, READ_BACK, rangeStarts, SEED } from './workloads.ts';

/** In a turn shorter than this, the way of code and arguments from memory to the processor, some 0.2 ms, would weigh. */
const SHORT_NS = 5_000_000;
/** So much time, and one run at least, a contender then has untimed at the beginning of its turn. */
const WARM_NS = 200_000;

export interface Case {
  /** The bench that asks. */
  question: string;
  guest: Guest;
  operation: string;
  walk: Walk;
  /** 0: the whole guest. */
  npages: number;
  count: number;
  order: Order;
  /** direct unless given. */
  roots?: string;
}

function agree(found: Case, name: string, outcome: Outcome, first: Outcome, firstName: string): void {
  if (outcome.leafs === first.leafs && outcome.looked === first.looked) return;
  const what = `${found.operation} of ${found.guest.bytes / GIB} GiB ${found.guest.density} ${found.guest.leaves}`;
  throw new Error(
    `${what}: ${name} found ${outcome.leafs} leaves and read ${outcome.looked}, ${firstName} ${first.leafs} and ${first.looked}`,
  );
}

/** The rows of `found`, one for each contender that takes it. `goalOf` says which goal a contender's row answers. */
export async function measure(
  found: Case,
  all: readonly Contender[],
  rounds: number,
  warmUps: number,
  goalOf: (found: Case, contender: string) => Goal | null,
): Promise<Row[]> {
  const { guest, walk, npages, order } = found;
  const contenders = all.filter((one) => one.takes(guest, walk, npages));
  const whole = npages === 0;
  const times = new Map<string, number[]>(contenders.map(({ name }) => [name, []]));
  const lastNs = new Map<string, number>();
  let leafs = 0;
  for (let round = -warmUps; round < rounds; round++) {
    const gfns = whole
      ? gfnsToRead(guest, READ_BACK, SEED + round)
      : rangeStarts(guest, npages, found.count, order, SEED + round);
    const more = gfnsToRead(guest, READ_BACK, SEED + 1000 + round);
    let first: { name: string; outcome: Outcome; looked: number } | undefined;
    for (let turn = 0; turn < contenders.length; turn++) {
      const contender = contenders[(turn + Math.max(round, 0)) % contenders.length];
      // The others' turns have driven this one's code and arguments from the caches: the fastest would be timed waiting for
      // them.
      const isShort = (lastNs.get(contender.name) ?? SHORT_NS) < SHORT_NS;
      for (let warm = isShort ? 0 : WARM_NS; warm < WARM_NS; ) {
        await contender.fill(walk);
        await contender.use(whole ? more : gfns);
        warm += (whole ? await contender.whole(walk) : await contender.ranges(walk, npages)).ns;
      }
      await contender.fill(walk);
      await contender.use(gfns);
      const outcome = whole ? await contender.whole(walk) : await contender.ranges(walk, npages);
      lastNs.set(contender.name, outcome.ns);
      await contender.use(more);
      const looked = await contender.look();
      first ??= { name: contender.name, outcome, looked };
      agree(found, contender.name, outcome, first.outcome, first.name);
      agree(
        found,
        `${contender.name} (after)`,
        { ...outcome, looked },
        { ...outcome, looked: first.looked },
        first.name,
      );
      leafs = outcome.leafs;
      if (round >= 0) times.get(contender.name)!.push(outcome.ns / found.count);
    }
  }
  const middle = (name: string) => (times.has(name) ? median(times.get(name)!) : null);
  return contenders.map(({ name }) => {
    const nsPerOperation = middle(name)!;
    return row({
      question: found.question,
      guestBytes: guest.bytes,
      density: guest.density,
      operation: found.operation,
      leaves: guest.leaves,
      roots: found.roots ?? 'direct',
      // Present and accessed; the leaves of a mirror are never aged.
      planes: guest.density === 'full' ? 0 : found.roots === 'mirror' ? 1 : 2,
      contender: name,
      nsPerPage: nsPerOperation / (whole ? pagesOf(guest) : npages),
      nsPerOperation,
      ...ratiosOf(nsPerOperation, middle),
      goal: middle('native tdp_iter') === null ? null : goalOf(found, name),
      order: whole ? undefined : order,
      operations: found.count,
      samples: rounds,
      spread: spreadOf(times.get(name)!),
      note: `${leafs} leaves`,
    });
  });
}
