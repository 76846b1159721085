// Performs a recording's operations in order and collects what differs, whoever performs them.

import type { Vm } from '../../index.ts';
import { compareOperation, type Difference, type Outcome, type Surroundings } from './compare.ts';
import { InputError, type RecordedOperation, type Recording } from './reader.ts';

/** One difference, as `conform --json` prints it. */
export interface Detail {
  readonly file: string;
  readonly i: number;
  readonly field: string;
  readonly expected: string;
  readonly actual: string;
}

export interface ConformResult {
  files: number;
  operations: number;
  changes: number;
  mismatches: number;
  readonly details: Detail[];
}

/** What a listener learns of a difference while the VM is still in the state that shows it. */
export interface Mismatch {
  readonly detail: Detail;
  readonly difference: Difference;
  readonly recording: Recording | undefined;
  readonly operation: RecordedOperation | undefined;
  readonly vm: Vm | undefined;
  readonly slots: readonly string[];
}

export interface RunOptions {
  readonly stopAtFirst?: boolean;
  readonly onMismatch?: (mismatch: Mismatch) => void;
}

/** Something that performs recorded operations: the simulator, or in a test a player of the recording itself. */
export interface Performer extends Surroundings {
  readonly currentVm: Vm | undefined;
  perform(operation: RecordedOperation): Outcome;
  /** The memslots at the moment, one line each. */
  listSlots(): string[];
  close(): void;
}

export function emptyResult(): ConformResult {
  return { files: 0, operations: 0, changes: 0, mismatches: 0, details: [] };
}

/**
 * Replays one recording into `result`. Returns false if the run is to stop.
 * A fault of the simulator itself ends the recording; each operation after it counts as a mismatch, for none was compared.
 */
export function runRecording(
  recording: Recording,
  performer: Performer,
  result: ConformResult,
  options: RunOptions = {},
): boolean {
  let fault: string | undefined;
  for (const operation of recording.operations) {
    result.operations++;
    result.changes += operation.changeCount;
    let differences: Difference[];
    if (fault !== undefined) {
      differences = [{ field: 'replayed', expected: 'yes', actual: 'no: an operation before it failed' }];
    } else {
      try {
        const outcome = performer.perform(operation);
        differences = compareOperation(operation, outcome, performer);
      } catch (error) {
        if (error instanceof InputError) throw error;
        fault = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
        differences = [{ field: 'fault', expected: 'an answer', actual: fault }];
      }
    }
    for (const difference of differences) {
      const { field, expected, actual } = difference;
      const detail = { file: recording.file, i: operation.i, field, expected, actual };
      result.mismatches++;
      result.details.push(detail);
      options.onMismatch?.({
        detail,
        difference,
        recording,
        operation,
        vm: fault === undefined ? performer.currentVm : undefined,
        slots: performer.listSlots(),
      });
      if (options.stopAtFirst) return false;
    }
  }
  return true;
}
