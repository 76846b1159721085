// Plays a recording back as if a VM had just done it: the comparator's own tests hold corrupted recordings against it.
//
// Only what a recording holds can be played: leafs and their crc come from `state`, so operations without one lose them.

import {
  EVENT_FIELDS,
  EVENT_KINDS,
  type Outcome,
  type TracedEvent,
  type TracedLeafs,
  type TracedMeaning,
} from '../../src/cli/conform/compare.ts';
import type { RecordedOperation, Recording } from '../../src/cli/conform/reader.ts';
import type { Performer } from '../../src/cli/conform/run.ts';
import {
  ACCESSED,
  ChangeRuns,
  CLASS_MASK,
  DIRTY,
  EXECUTABLE,
  type FieldValue,
  HOST_WRITABLE,
  LEAF,
  MMU_WRITABLE,
  meaningOfSpte,
  plainEvents,
  WRITABLE,
} from '../../src/cli/conform/unfold.ts';

const CLASSES = ['nonpresent', 'mmio', 'frozen', 'table', 'leaf'];

function toTraced(meaning: number): TracedMeaning {
  return {
    class: CLASSES[meaning & CLASS_MASK] ?? 'unknown',
    writable: (meaning & WRITABLE) !== 0,
    executable: (meaning & EXECUTABLE) !== 0,
    accessed: (meaning & ACCESSED) !== 0,
    dirty: (meaning & DIRTY) !== 0,
    hostWritable: (meaning & HOST_WRITABLE) !== 0,
    mmuWritable: (meaning & MMU_WRITABLE) !== 0,
    mmioGeneration: (meaning & CLASS_MASK) === LEAF ? undefined : meaning >> 9,
  };
}

/** The trace a VM would give: changes cut where an event falls inside a run. */
function traceOf(operation: RecordedOperation): TracedEvent[] {
  const trace: TracedEvent[] = [];
  const runs = new ChangeRuns(operation.changes);
  let has = runs.next();
  let offset = 0;
  let pos = 0;
  const advance = (to: number) => {
    while (has && pos < to) {
      const single = runs.gfnStep !== 512 ** (runs.level - 1);
      const count = single ? 1 : Math.min(runs.count - offset, to - pos);
      trace.push({
        name: 'spte_changed',
        asId: runs.asId,
        gfn: runs.gfn + offset * runs.gfnStep,
        level: runs.level,
        old: toTraced(runs.oldMeaning),
        new: toTraced(runs.newMeaning),
        count,
      } as TracedEvent);
      pos += count;
      offset += count;
      if (offset === runs.count) {
        offset = 0;
        has = runs.next();
      }
    }
  };
  for (const event of plainEvents(operation.events, EVENT_KINDS)) {
    advance(event.pos);
    const properties: Record<string, FieldValue | string> = { name: event.name };
    EVENT_FIELDS[event.name].forEach(([property], k) => {
      if (property !== undefined) properties[property] = event.fields[k];
    });
    trace.push(properties as unknown as TracedEvent);
  }
  advance(Number.POSITIVE_INFINITY);
  return trace;
}

function leafsOf(operation: RecordedOperation): TracedLeafs[] {
  return (operation.state ?? []).map(([asId, level, gfn, count, flags]) => ({
    asId,
    level,
    gfn,
    count,
    meaning: meaningOfSpte(flags, level),
  }));
}

/** Keeps only what can be played: the crc and the leaf counts go where no `state` was recorded. */
export function playable(recording: Recording): Recording {
  const operations = recording.operations.map((operation) =>
    operation.state === undefined ? { ...operation, leafs: undefined, h: undefined } : operation,
  );
  return { ...recording, operations };
}

/** Answers each operation with what `original` recorded of it. */
export class Player implements Performer {
  secondVcpuRuns = false;
  readonly currentVm = undefined;
  private readonly original: Recording;
  constructor(original: Recording) {
    this.original = original;
  }

  overlapsSlot(start: FieldValue, end: FieldValue): boolean {
    return Number(start) < Number(end);
  }

  listSlots(): string[] {
    return [];
  }

  close(): void {}

  perform(operation: RecordedOperation): Outcome {
    const original = this.original.operations[operation.i];
    if (operation.op === 'start_spinning_vcpu1') this.secondVcpuRuns = true;
    if (operation.op === 'stop_vcpu1') this.secondVcpuRuns = false;
    return {
      ret: original.ret,
      errno: original.errno,
      exits: original.exits,
      leftGpa: original.leftGpa,
      leftSize: original.leftSize,
      dirty: original.dirty,
      trace: traceOf(original),
      stats: original.stats,
      leafs: () => leafsOf(original),
      tables: () => original.tables ?? 0,
    };
  }
}
