// Replays files of recordings and unit vectors on the simulator: what `eptsim conform` runs.

import type { Difference } from './compare.ts';
import { HostInputs } from './host-inputs.ts';
import { readFile, type VectorFile } from './reader.ts';
import { type EngineOptions, Replay } from './replay.ts';
import { type ConformResult, emptyResult, type RunOptions, runRecording } from './run.ts';
import { VectorCheck } from './vectors.ts';

export interface ConformRunOptions extends RunOptions {
  readonly engine?: EngineOptions;
}

function runVectors(file: VectorFile, inputs: HostInputs, result: ConformResult, options: ConformRunOptions): boolean {
  const check = new VectorCheck(file.vectors, inputs, options.engine);
  for (const vector of file.vectors) {
    result.operations++;
    for (const [, , count] of vector.changed) result.changes += count;
    let differences: readonly Difference[];
    try {
      differences = check.check(vector);
    } catch (error) {
      const fault = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
      differences = [{ field: 'fault', expected: 'an answer', actual: fault }];
    }
    for (const difference of differences) {
      const { field, expected, actual } = difference;
      const detail = { file: file.file, i: vector.line - 1, field, expected, actual };
      result.mismatches++;
      result.details.push(detail);
      options.onMismatch?.({
        detail,
        difference,
        recording: undefined,
        operation: undefined,
        vm: undefined,
        slots: [],
      });
      if (options.stopAtFirst) return false;
    }
  }
  return true;
}

/**
 * Replays the files in order.
 * @throws {InputError} if one of them is no recording and no file of vectors
 */
export function conform(files: readonly string[], inputs: HostInputs, options: ConformRunOptions = {}): ConformResult {
  const result = emptyResult();
  for (const file of files) {
    const input = readFile(file);
    result.files++;
    const own = new HostInputs(inputs.allowed);
    let goesOn: boolean;
    if ('vectors' in input) {
      goesOn = runVectors(input, own, result, options);
    } else {
      const replay = new Replay(input, own, options.engine);
      try {
        goesOn = runRecording(input, replay, result, options);
      } finally {
        replay.close();
      }
    }
    inputs.add(own);
    if (!goesOn) break;
  }
  return result;
}
