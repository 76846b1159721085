// Shortens a failing recording: the fewest operations after which the same operation still differs in the same way.
//
// What real KVM would have answered to a shortened list is not known. So only the last operation is held against its
// recording, and a shorter list counts as failing if it shows the same field, expected and actual value.

import { compareOperation, type Difference } from './compare.ts';
import { HostInputs } from './host-inputs.ts';
import type { RecordedOperation, Recording } from './reader.ts';
import { type EngineOptions, Replay } from './replay.ts';

/** Replays a search may take; it then returns the shortest list found. */
const REPLAYS_MAX = 600;

/** Whether `operations` still end in the difference. */
function stillDiffers(
  recording: Recording,
  operations: readonly RecordedOperation[],
  difference: Pick<Difference, 'field' | 'expected' | 'actual'>,
  allowInputs: boolean,
  engine: EngineOptions,
): boolean {
  const replay = new Replay({ ...recording, operations }, new HostInputs(allowInputs), engine);
  try {
    const last = operations[operations.length - 1];
    for (const operation of operations) {
      const outcome = replay.perform(operation);
      if (operation !== last) continue;
      return compareOperation(operation, outcome, replay).some(
        ({ field, expected, actual }) =>
          field === difference.field && expected === difference.expected && actual === difference.actual,
      );
    }
    return false;
  } catch (error) {
    return difference.field === 'fault' && String(error).includes(difference.actual);
  } finally {
    replay.close();
  }
}

/**
 * Returns the operations of the shortest failing list found, the failing one last.
 * Parts of halving size are left out in turn, the last operations first, until no single one can go.
 */
export function minimise(
  recording: Recording,
  failing: number,
  difference: Pick<Difference, 'field' | 'expected' | 'actual'>,
  allowInputs: boolean,
  engine: EngineOptions = {},
): readonly RecordedOperation[] {
  const last = recording.operations[failing];
  let kept = recording.operations.slice(0, failing);
  let replays = 0;
  for (let size = Math.ceil(kept.length / 2); size >= 1 && replays < REPLAYS_MAX; ) {
    let shortened = false;
    for (let end = kept.length; end > 0 && replays < REPLAYS_MAX; ) {
      const start = Math.max(0, end - size);
      const candidate = [...kept.slice(0, start), ...kept.slice(end)];
      replays++;
      if (stillDiffers(recording, [...candidate, last], difference, allowInputs, engine)) {
        kept = candidate;
        shortened = true;
      }
      end = start;
    }
    if (size > 1) size = Math.ceil(size / 2);
    else if (!shortened) break;
  }
  return [...kept, last];
}
