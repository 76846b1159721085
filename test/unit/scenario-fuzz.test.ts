// Whatever stands in a scenario, it is judged: it runs, or it is refused with a place. Nothing else is thrown.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { InputError, parseScenarioText } from '../../src/cli/scenario-file.ts';
import {
  type CreateVmOptions,
  checkScenario,
  createVm,
  runScenario,
  type Scenario,
  ScenarioError,
} from '../../src/index.ts';

const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

const seed: Scenario = {
  name: 'seed',
  parameters: {
    size: { default: '4MiB', min: '2MiB', max: '1GiB', multipleOf: 4096 },
    leaf: { default: '4K', oneOf: ['4K', '2M'] },
  },
  let: { half: 'size / 2' },
  require: [{ that: 'half > 0', say: 'no' }],
  vm: { type: 'sw-protected', memory: 'size', vcpus: 2, quirks: { slotZapAll: false } },
  memory: [{ slot: 0, gpa: 0, size: 'size', host: "leaf == '2M' ? 'thp' : 'anon4k'", guestMemfd: 'ram' }],
  check: 'empty',
  steps: [
    { madvise: { hva: 'hva(0)', length: 'size', advice: 'POPULATE_WRITE' } },
    { repeat: 3, index: 'i', steps: [{ access: { gpa: 'i * 4KiB', kind: 'write' }, returns: 'done' }] },
    { beginFault: { gpa: 'half', kind: 'read' }, as: 'fault' },
    {
      setMemoryAttributes: { address: 0, size: 'half', attributes: 'PRIVATE' },
      measure: true,
      expect: { pages_4k: '>= -3' },
    },
    { finishFault: { fault: 'fault' }, returns: 'retry' },
    { if: "type == 'sw-protected'", preFaultMemory: { gpa: 0, size: 'half' } },
    { punchHole: { guestMemfd: 'ram', offset: 0, length: 'half' } },
    { unmapGfnRange: { slot: 0, start: 0, end: 'pages(size)', mayBlock: true } },
    { setMemoryAttributes: { address: 1, size: 'half', attributes: 0 }, refused: 'EINVAL' },
    { destroy: null },
    { close: { guestMemfd: 'ram' } },
  ],
  compare: [
    { name: 'a' },
    { name: 'b', vm: { type: 'snp' }, check: 'off', set: { size: '2MiB' }, expect: { privatePagesLost: 0 } },
  ],
};

/** Every place of `value`, as the keys that lead there. */
function placesIn(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([key, inner]) => placesIn(inner, [...path, key]))];
}

const places = placesIn(seed);
const value = fc.oneof(
  fc.constantFrom<unknown>(
    undefined,
    null,
    true,
    '',
    'size',
    'size * 1PiB',
    '-1',
    "'tdx'",
    'tdx',
    'ram',
    '1 / 0',
    '4097',
    '1e3',
    [],
    {},
  ),
  fc.constantFrom<unknown>(
    -1,
    0,
    0.5,
    1,
    4096,
    2 ** 40,
    2 ** 53,
    2n ** 64n - 1n,
    2n ** 64n,
    Number.NaN,
    Number.POSITIVE_INFINITY,
  ),
  fc.anything({ maxDepth: 2 }),
  // Another part of the scenario, where it does not belong.
  fc
    .constantFrom(...places)
    .map((path) => path.reduce((part: unknown, key) => (part as Record<string, unknown>)[key], seed)),
);

function replaced(at: string[], by: unknown): unknown {
  if (at.length === 0) return by;
  const copy = structuredClone(seed) as unknown as Record<string, unknown>;
  let part = copy;
  for (const key of at.slice(0, -1)) part = part[key] as Record<string, unknown>;
  const last = at.at(-1) as string;
  if (by === undefined) delete part[last];
  else part[last] = by;
  return copy;
}

test('the scenario that is damaged below is sound', async () => {
  const { failures } = await runScenario(seed, { createVm: onThisBuild });
  expect(failures).toBeUndefined();
});

test('any value at all is judged', () => {
  fc.assert(
    fc.property(fc.anything(), (scenario) => {
      expect(Array.isArray(checkScenario(scenario))).toBe(true);
    }),
    { numRuns: 1000 },
  );
});

test('a scenario with one part damaged runs or is refused with a place', async () => {
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...places), value, async (at, by) => {
      try {
        await runScenario(replaced(at, by) as Scenario, { createVm: onThisBuild });
      } catch (error) {
        if (!(error instanceof ScenarioError)) throw error;
        expect(error.faults.length).toBeGreaterThan(0);
        for (const { path, message } of error.faults)
          expect([Array.isArray(path), message === '']).toEqual([true, false]);
      }
    }),
    { numRuns: 400, interruptAfterTimeLimit: 40_000 },
  );
}, 120_000);

test('any text is a scenario file or refused with line and column', () => {
  const yaml = JSON.stringify(seed, undefined, 2);
  const damaged = fc
    .tuple(fc.nat(yaml.length), fc.nat(20), fc.string({ maxLength: 5 }))
    .map(([at, length, text]) => yaml.slice(0, at) + text + yaml.slice(at + length));
  fc.assert(
    fc.property(
      fc.oneof(damaged, fc.string(), fc.string({ unit: fc.constantFrom(...'-?:,[]{}#&*!|>\'"%@` \n\ta1') })),
      (text) => {
        try {
          checkScenario(parseScenarioText(text, 'f').scenario);
        } catch (error) {
          if (!(error instanceof InputError)) throw error;
          expect(error.message).toMatch(/^f:\d+:\d+: ./);
        }
      },
    ),
    { numRuns: 2000, interruptAfterTimeLimit: 40_000 },
  );
}, 120_000);
