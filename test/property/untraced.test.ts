// A trace only watches. One VM with a trace takes every fault by itself and step by step; one without may carry a plain
// fault through at once, and runs of them: both must come to the same results, counters and leafs.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type AnyVm, type Command, newTarget, PAGE, type Sequence, sequence, type Target } from './commands.ts';
import {
  attempt,
  cleanUp,
  commandsOf,
  commandText,
  difference,
  engineLeafs,
  isErrno,
  makeEngine,
  prepare,
  RUNS,
  SEED,
  sequenceText,
} from './world.ts';

const NUM_RUNS = Math.ceil(RUNS / 5);

type AccessCommand = Extract<Command, { op: 'access' }>;

/** How many pages an access of this test covers: up to two tables. */
const pagesOf = (command: AccessCommand): number => (command.page % 3 === 0 ? 1 : command.page % 700);

/** The access and those to the pages behind it: each by a call of its own, or all by one. */
function access({ vm, slots }: Target, command: AccessCommand, byOne: boolean): string {
  if (slots.length === 0) return 'no slot';
  const vcpu = vm.vcpus[command.vcpu % vm.vcpus.length];
  const slot = slots[command.slot % slots.length];
  const gpa = (slot.base + (command.page % slot.npages)) * PAGE;
  const how = { kind: command.kind, ...(command.isPrivate !== null && { private: command.isPrivate }) };
  const pages = pagesOf(command);
  try {
    if (!byOne) return exitText(vcpu.access({ gpa, ...how, count: pages }));
    for (let page = 0; page < pages; page++) {
      const exit = vcpu.access({ gpa: gpa + page * PAGE, ...how });
      if (exit.reason !== 'done') return exitText({ ...exit, done: page });
    }
    return exitText({ reason: 'done', gpa: BigInt(gpa + pages * PAGE), done: pages });
  } catch (error) {
    if (isErrno(error)) return error.code;
    throw error;
  }
}

const textOf = (value: unknown): string =>
  JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? `${part}` : part)) ?? 'nothing';

function exitText({ reason, gpa, done, ...rest }: Record<string, unknown>): string {
  return `${reason} at ${gpa} after ${done} ${textOf(rest)}`;
}

const statsOf = (vm: AnyVm): string[] => Object.entries(vm.stats()).map(([name, value]) => `${name} ${value}`);

test(
  `${NUM_RUNS} sequences end alike with a trace and without one`,
  () => {
    let fixed = 0;
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, (one) => {
        const traced = newTarget(makeEngine(one.config), one.config);
        const untraced = newTarget(makeEngine({ ...one.config, traceRecords: 0 } as never), one.config);
        prepare(traced);
        prepare(untraced);
        commandsOf(one).forEach((command, k) => {
          const outcomes = [traced, untraced].map((target) => {
            // Each access of a TD's enters and leaves it: there both do all of them by one call.
            if (command.op === 'access') return access(target, command, target === traced && !target.isTd);
            const { value, errno } = attempt(target, command);
            const isHandle = command.op === 'createGmem' || command.op === 'beginFault';
            return isHandle || errno !== undefined ? `${errno}` : textOf(value);
          });
          traced.vm.trace();
          const problems = [
            difference('results (model: with a trace)', [outcomes[1]], [outcomes[0]]),
            difference('counters', statsOf(untraced.vm), statsOf(traced.vm)),
            difference('leafs', engineLeafs(untraced.vm), engineLeafs(traced.vm)),
            difference(
              'invalidation',
              [JSON.stringify(untraced.vm.invalidate)],
              [JSON.stringify(traced.vm.invalidate)],
            ),
          ].filter((problem) => problem !== null);
          if (problems.length > 0) {
            throw new Error(`${problems.join('\n')}\nafter ${k}: ${commandText(command)}\n${sequenceText(one)}`);
          }
        });
        fixed += untraced.vm.stats().pf_fixed;
        cleanUp(traced);
        cleanUp(untraced);
      }),
      { numRuns: NUM_RUNS, ...SEED, verbose: 0 },
    );
    expect(fixed).toBeGreaterThan(NUM_RUNS * 20);
  },
  10 * 60_000,
);
