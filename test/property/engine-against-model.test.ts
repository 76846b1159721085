// Random sequences of commands on the engine and on the reference model: after each command they must not differ.
//
// EPTSIM_PROPERTY_RUNS sets how many sequences one run does, EPTSIM_PROPERTY_SEED where it starts.

import fc from 'fast-check';
import { test } from 'vitest';
import { type Sequence, sequence } from './commands.ts';
import { commandsOf, RUNS, SEED, sequenceText, TIMEOUT_MS, World } from './world.ts';

function runOne(one: Sequence): void {
  const world = new World(one.config);
  for (const command of commandsOf(one)) world.step(command);
  world.tearDown(one.gmemPages % 2 === 0);
}

test(
  `${RUNS} sequences of commands leave the engine and the model alike`,
  () => {
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, (one) => {
        try {
          runOne(one);
        } catch (error) {
          throw new Error(`${(error as Error).message}\n${sequenceText(one)}`, { cause: error });
        }
      }),
      { numRuns: RUNS, ...SEED, verbose: 0 },
    );
  },
  TIMEOUT_MS,
);
