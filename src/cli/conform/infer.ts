// Finds populations of host memory that found no huge page, where nothing recorded says so.
//
// Such a failure shows only later, as 4K where a 2M mapping was due. It is inferred once per 2M host region and population
// and binds everything after it; so an inference stands only if the recording then agrees further than without it.

import { compareOperation, type Difference } from './compare.ts';
import { HostInputs } from './host-inputs.ts';
import type { RecordedOperation, Recording } from './reader.ts';
import { type EngineOptions, type FailedHugePages, Replay } from './replay.ts';

const REGION_2M = 0x200000n;
/** Failures that one recording may have, and populations that are tried for each. */
const FAILURES_MAX = 16;
const POPULATIONS_MAX = 8;

/** How far a replay agrees, and the host regions that its first difference is about. */
interface Agreement {
  readonly i: number;
  readonly agreed: number;
  readonly regions: readonly { readonly hva: bigint; readonly populations: readonly number[] }[];
}

/**
 * Infers the failed huge pages of a recording that differs from its replay.
 * Returns them by operation: none if no inference makes the two agree further.
 */
export function inferFailedHugePages(recording: Recording, engine: EngineOptions): FailedHugePages {
  let failures = new Map<number, readonly bigint[]>();
  let first = replayUntilDifference(recording, failures, engine);
  for (let count = 0; first !== undefined && count < FAILURES_MAX; count++) {
    const found = nextFailure(recording, failures, first, engine);
    if (found === undefined) break;
    ({ failures, first } = found);
  }
  return failures;
}

function nextFailure(
  recording: Recording,
  failures: ReadonlyMap<number, readonly bigint[]>,
  before: Agreement,
  engine: EngineOptions,
): { failures: Map<number, readonly bigint[]>; first: Agreement | undefined } | undefined {
  for (const { hva, populations } of before.regions) {
    for (const at of populations) {
      const known = failures.get(at) ?? [];
      if (known.includes(hva)) continue;
      const tried = new Map(failures).set(at, [...known, hva]);
      const after = replayUntilDifference(recording, tried, engine);
      const isFurther =
        after === undefined || after.i > before.i || (after.i === before.i && after.agreed > before.agreed);
      if (isFurther) return { failures: tried, first: after };
    }
  }
  return undefined;
}

function replayUntilDifference(
  recording: Recording,
  failures: FailedHugePages,
  engine: EngineOptions,
): Agreement | undefined {
  const replay = new Replay(recording, new HostInputs(true), engine, failures);
  try {
    for (const operation of recording.operations) {
      const outcome = replay.perform(operation);
      const differences = compareOperation(operation, outcome, replay);
      if (differences.length === 0) continue;
      const telling = differences.filter((one) => one.place !== undefined || (one.hvas?.length ?? 0) > 0);
      const agreed = Math.min(...telling.map((one) => one.agreed ?? 0));
      return { i: operation.i, agreed, regions: regionsOf(recording, operation, telling, replay) };
    }
    return undefined;
  } catch {
    // A fault of the simulator is no matter of huge pages.
    return { i: -1, agreed: 0, regions: [] };
  } finally {
    replay.close();
  }
}

function regionsOf(
  recording: Recording,
  operation: RecordedOperation,
  differences: readonly Difference[],
  replay: Replay,
): Agreement['regions'] {
  const hvas = new Set<bigint>();
  for (const { place, hvas: named } of differences) {
    if (place !== undefined) for (const hva of replay.hvasOf(place.asId, place.gfn)) hvas.add(hva - (hva % REGION_2M));
    for (const hva of named ?? []) hvas.add(hva - (hva % REGION_2M));
  }
  return [...hvas].map((hva) => ({ hva, populations: populationsOf(recording, operation, hva, replay) }));
}

/** The operations that may have populated a region, the latest first. */
function populationsOf(recording: Recording, last: RecordedOperation, region: bigint, replay: Replay): number[] {
  const found: number[] = [];
  for (let i = last.i; i >= 0 && found.length < POPULATIONS_MAX; i--) {
    const { op, args } = recording.operations[i];
    const start = (name: string) => BigInt(`0x${args[name]}`);
    if (op === 'host_access' || (op === 'madvise' && args.advice === 'POPULATE_WRITE')) {
      const hva = start('hva');
      if (hva < region + REGION_2M && hva + BigInt(args.len as number) > region) found.push(i);
    } else if (op === 'pre_fault_memory') {
      if (replay.gpaMeetsRegion(start('gpa'), start('size'), region)) found.push(i);
    } else if (op === 'guest_access' && args.kind !== 'nop') {
      const size = start('stride') * BigInt(args.count as number) + 1n;
      if (replay.gpaMeetsRegion(start('gpa'), size, region)) found.push(i);
    }
  }
  return found;
}
