// A snapshot is all there is: taken at a random point, also between the steps of a fault, restored into a fresh VM, and
// continued there, the sequence ends in the same bytes.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { GuestMemfd, Vm } from '../../src/index.ts';
import { eventLines } from '../support/events.ts';
import { type Command, newTarget, type Sequence, sequence, type Target } from './commands.ts';
import { attempt, commandsOf, commandText, makeEngine, prepare, sameBytes, sequenceText } from './world.ts';

const RUNS = Math.ceil(Number(process.env.EPTSIM_PROPERTY_RUNS ?? 1000) / 10);
const SEED = process.env.EPTSIM_PROPERTY_SEED === undefined ? {} : { seed: Number(process.env.EPTSIM_PROPERTY_SEED) };

/** A target on a fresh VM that has taken `from`'s state; handles are ids, so they carry over. */
function restored(from: Target, sequence: Sequence, bytes: Uint8Array): Target {
  const to = newTarget(makeEngine(sequence.config), sequence.config);
  (to.vm as Vm).restore(bytes);
  const files = new Map((to.vm as Vm).guestMemfds.map((file: GuestMemfd) => [file.fd, file]));
  for (const { fd, isOpen, handle } of from.gmems) {
    to.gmems.push({ fd, isOpen, handle: isOpen ? files.get(fd) : handle });
  }
  to.faults.push(...from.faults.map((fault) => ({ ...fault })));
  to.started.push(...from.started.map((range) => ({ ...range })));
  to.slots.push(...from.slots.map((slot) => ({ ...slot })));
  return to;
}

const describe = (command: Command, target: Target): string => {
  const { value, errno } = attempt(target, command);
  const events = target.vm.trace().flatMap(eventLines);
  const text = command.op === 'createGmem' ? 'a file' : JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}` : v));
  return [errno ?? text, ...events].join('\n');
};

test(
  `${RUNS} sequences go on from a snapshot as without one`,
  () => {
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, fc.nat(40), (one, cut) => {
        const commands = commandsOf(one).filter((command) => command.op !== 'createGmem' && command.op !== 'closeGmem');
        const first = newTarget(makeEngine(one.config), one.config);
        prepare(first);
        if (one.config.type !== 'default') attempt(first, { op: 'createGmem', npages: one.gmemPages });
        const at = cut % (commands.length + 1);
        for (const command of commands.slice(0, at)) describe(command, first);
        const bytes: Uint8Array = first.vm.snapshot();
        expect(bytes.length).toBe(first.vm.memoryUsed);
        // The file's number belongs to one VM at a time: the first goes on before the second takes it over.
        const rest = commands.slice(at);
        const expected = rest.map((command) => describe(command, first));
        const end: Uint8Array = first.vm.snapshot();
        const second = restored(first, one, bytes);
        rewind(second, first, commands.slice(0, at), one);
        const problem = rest.findIndex((command, k) => describe(command, second) !== expected[k]);
        if (problem >= 0) {
          throw new Error(`restored after ${at}, differs after ${commandText(rest[problem])}\n${sequenceText(one)}`);
        }
        if (!sameBytes(end, second.vm.snapshot())) {
          throw new Error(`restored after ${at}, ends in other bytes\n${sequenceText(one)}`);
        }
        for (const file of (second.vm as Vm).guestMemfds) file.close();
      }),
      { numRuns: RUNS, ...SEED },
    );
  },
  10 * 60_000,
);

/** What the driver keeps beside the VM, as it was when the snapshot was taken: computed again on a third VM. */
function rewind(target: Target, _first: Target, done: Command[], one: Sequence): void {
  const again = newTarget(makeEngine(one.config), one.config);
  prepare(again);
  const file = target.gmems[0];
  if (file) again.gmems.push({ ...file, handle: closedFile });
  for (const command of done) attempt(again, command);
  target.faults.splice(0, target.faults.length, ...again.faults);
  target.started.splice(0, target.started.length, ...again.started);
  target.slots.splice(0, target.slots.length, ...again.slots);
}
const closedFile = undefined;
