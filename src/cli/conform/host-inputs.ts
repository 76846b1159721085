// What a replay takes from the recording because nothing before determines it: other actors on the host, timing,
// and what the recorder itself did unseen. Each is read from the recorded events, counted by kind, and can be refused.
// None of them is an SPTE: they say what happened to host memory, or when, and the engine computes the rest.

import type { RecordedOperation } from './reader.ts';
import { ChangeRuns, type FieldKind, type FieldValue, type PlainEvent, plainEvents } from './unfold.ts';

/** The kinds of host input, with what each is. */
export const HOST_INPUT_KINDS = {
  khugepaged: 'a 2M region that khugepaged collapsed',
  ksm: 'a page that KSM wrote-protected or merged',
  'collapse-result': 'whether MADV_COLLAPSE of shared memory succeeded',
  'idle-scan': 'a page that reading the page_idle bitmap looked at (neighbours by PFN)',
  mglru: 'a page that the multi-gen LRU aged, in its order',
  'nx-recovery': 'a run of the NX recovery thread',
  yield: 'a yield inside a zap',
  alarm: 'the alarm that ended a call',
  'guest-junk': 'accesses of a guest that executed data',
  'silent-close': 'a guest_memfd fd that the recorder closed unrecorded',
  'accessed-bit': 'an access by the guest since the leafs of a vector were read',
  inferred: 'a huge page that the host could not allocate',
} as const;

export type HostInputKind = keyof typeof HOST_INPUT_KINDS;

/** Counts the inputs taken; takes none if they were refused. */
export class HostInputs {
  readonly counts = new Map<HostInputKind, number>();
  readonly allowed: boolean;

  constructor(allowed: boolean) {
    this.allowed = allowed;
  }

  /** Returns whether the input may be used, and counts it then. */
  take(kind: HostInputKind, count = 1): boolean {
    if (!this.allowed) return false;
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + count);
    return true;
  }

  add(other: HostInputs): void {
    for (const [kind, count] of other.counts) this.counts.set(kind, (this.counts.get(kind) ?? 0) + count);
  }
}

export interface HvaRange {
  readonly start: bigint;
  readonly end: bigint;
}

const HVA: readonly FieldKind[] = ['hex', 'hex'];

/** The host ranges of the notifier events called `name`, in order. */
export function* recordedHvaRanges(operation: RecordedOperation, name: string): Generator<HvaRange> {
  for (const event of plainEvents(operation.events, new Map([[name, HVA]]))) {
    yield { start: BigInt(event.fields[0]), end: BigInt(event.fields[1]) };
  }
}

/** How often an event called `name` was recorded; its fields are not read. */
export function countEvents(operation: RecordedOperation, name: string): number {
  let count = 0;
  for (const _ of plainEvents(operation.events, new Map([[name, []]]))) count++;
  return count;
}

/** The gfns of the entries before which a zap yielded: a flush between the start and the end of one zap. */
export function recordedYields(operation: RecordedOperation): number[] {
  const kinds = new Map<string, readonly FieldKind[]>([
    ['zap_leafs', []],
    ['zap_leafs_ret', []],
    ['flush', []],
  ]);
  const gfns: number[] = [];
  let canYield = false;
  for (const event of plainEvents(operation.events, kinds)) {
    if (event.name === 'flush') {
      const gfn = canYield ? gfnOfChange(operation, event) : undefined;
      if (gfn !== undefined) gfns.push(gfn);
    } else {
      canYield = event.name === 'zap_leafs' && isSet(event.fields[2]);
    }
  }
  return gfns;
}

function isSet(field: FieldValue | undefined): boolean {
  return field !== undefined && Number(field) !== 0;
}

function gfnOfChange(operation: RecordedOperation, event: PlainEvent): number | undefined {
  const runs = new ChangeRuns(operation.changes);
  for (let passed = 0; runs.next(); passed += runs.count) {
    if (event.pos < passed + runs.count) return runs.gfn + (event.pos - passed) * runs.gfnStep;
  }
  return undefined;
}
