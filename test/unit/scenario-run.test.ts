import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import {
  type CreateVmOptions,
  createVm,
  type RunOptions,
  runScenario,
  type Scenario,
  ScenarioError,
  type ScenarioStep,
  scenarioNamed,
  scenarios,
  type Vm,
} from '../../src/index.ts';

const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

const run = (scenario: Scenario | string, options: RunOptions = {}) =>
  runScenario(scenario, { createVm: onThisBuild, ...options });

/** A VM of 2 MiB with one slot of 4K pages, and `steps`. */
function small(steps: ScenarioStep[], more: Partial<Scenario> = {}): Scenario {
  return { name: 'small', vm: { memory: '2MiB' }, memory: [{ slot: 0, gpa: 0, size: '2MiB' }], steps, ...more };
}

/** What the run is refused with: the path of the first fault and its message. */
async function refusal(scenario: Scenario, options?: RunOptions): Promise<string> {
  try {
    await run(scenario, options);
  } catch (error) {
    if (!(error instanceof ScenarioError)) throw error;
    return `${error.faults[0].path.join('.')}: ${error.faults[0].message}`;
  }
  throw new Error('it was not refused');
}

describe('the counters of a step', () => {
  const map = { repeat: 4, index: 'page', access: { gpa: 'page * 4KiB', kind: 'write' } };
  const unmap = { unmapGfnRange: { slot: 0, start: 1, end: 3 } };

  test('are its change, and those of the result the measured step’s', async () => {
    const { variants, scenario, parameters } = await run(small([map, { ...unmap, name: 'unmap', measure: true }, map]));
    const [{ name, counters, losses, steps }] = variants;
    expect({ scenario, parameters, name }).toEqual({ scenario: 'small', parameters: {}, name: 'small' });
    expect(steps.map((step) => [step.name, step.counters.pages_4k, step.counters.leafs_zapped_direct_4k])).toEqual([
      ['memory', 0, 0],
      ['access', 4, 0],
      ['unmap', -2, 2],
      ['access', 2, 0],
    ]);
    expect(counters).toEqual(steps[2].counters);
    expect(losses).toEqual({ privatePagesLost: 0, pagesToAccept: 0, gfnsZappedOutside: 0, staleSharedLeaves: 0 });
  });

  test('are those of all steps where none is measured', async () => {
    const { variants } = await run(small([map, unmap]));
    expect(variants[0].counters.pages_4k).toBe(2);
    expect(variants[0].counters.leafs_zapped_direct_4k).toBe(2);
  });

  test('can still be told after the VM is destroyed', async () => {
    const { variants } = await run(small([map, { destroy: null }]));
    const { counters } = variants[0].steps[2];
    expect(counters.leafs_zapped_direct_4k).toBe(4);
    expect(counters.tables_freed).toBeGreaterThan(0);
    expect(counters.pages_4k).toBe(-4);
  });

  test('are told as they come', async () => {
    const seen: string[] = [];
    const scenario = small([map], { compare: [{ name: 'a' }, { name: 'b' }] });
    await run(scenario, { onStep: (variant, step) => seen.push(`${variant} ${step.name}`) });
    expect(seen).toEqual(['a memory', 'a access', 'b memory', 'b access']);
  });
});

describe('an expectation that does not hold is a failure, not an error', () => {
  const access = { access: { gpa: 0, kind: 'write' } };
  test.each<[string, ScenarioStep, RegExp | undefined]>([
    ['a counter as it is', { ...access, expect: { pages_4k: 1 } }, undefined],
    ['a counter that differs', { ...access, expect: { pages_4k: 2 } }, /^pages_4k is 1, expected 2$/],
    ['a comparison that holds', { ...access, expect: { pages_4k: '>= 1', leafs_zapped_direct_4k: '!= 1' } }, undefined],
    ['a comparison that does not', { ...access, expect: { pages_4k: '< 1' } }, /^pages_4k is 1, expected < 1$/],
    ['a loss', { ...access, expect: { privatePagesLost: 1 } }, /^privatePagesLost is 0, expected 1$/],
    [
      'what a method returns',
      { unmapGfnRange: { slot: 0, start: 0, end: 1 }, returns: true },
      /^unmapGfnRange returned false, not true$/,
    ],
    ['how an access ends', { access: { gpa: '1GiB', kind: 'read' }, returns: 'mmio' }, undefined],
    [
      'an access that ends otherwise',
      { access: { gpa: '1GiB', kind: 'read' } },
      /^access returned 'mmio', not 'done'$/,
    ],
    [
      'a refusal that comes',
      { setMemoryAttributes: { address: 1, size: 4096, attributes: 0 }, refused: 'EINVAL' },
      undefined,
    ],
    ['a refusal that does not', { ...access, refused: 'EINVAL' }, /^expected EINVAL, but access succeeded$/],
    [
      'another refusal',
      { setMemoryAttributes: { address: 1, size: 4096, attributes: 0 }, refused: 'EEXIST' },
      /^expected EEXIST, but: .*EINVAL/,
    ],
    [
      'the sum over repeats',
      { repeat: 3, access: { gpa: 'index * 4096', kind: 'write' }, expect: { pages_4k: 3 } },
      undefined,
    ],
    ['a group', { steps: [access, { access: { gpa: 4096, kind: 'write' } }], expect: { pages_4k: 2 } }, undefined],
  ])('%s', async (_, step, message) => {
    const { failures } = await run(small([step]));
    if (message === undefined) expect(failures).toBeUndefined();
    else
      expect(failures).toEqual([
        expect.objectContaining({ variant: 'small', message: expect.stringMatching(message) }),
      ]);
  });

  test('of a variant is judged on the measured step', async () => {
    const steps = [{ access: { gpa: 0, kind: 'write' } }, { recoverNxHugePages: {}, measure: true }];
    const { failures } = await run(small(steps, { compare: [{ name: 'v', expect: { pages_4k: 1 } }] }));
    expect(failures).toEqual([
      {
        variant: 'v',
        step: 'recoverNxHugePages',
        path: ['compare', 0, 'expect', 'pages_4k'],
        message: 'pages_4k is 0, expected 1',
      },
    ]);
  });
});

describe('the oracle', () => {
  // The RFC's callback for SNP zaps nothing, so the shared leaf stays over private memory.
  const stale: Scenario = {
    ...small([
      { access: { gpa: 0, kind: 'write' } },
      { setMemoryAttributes: { address: 0, size: '2MiB', attributes: 'PRIVATE' } },
    ]),
    vm: { type: 'snp', memory: '2MiB' },
    memory: [{ slot: 0, gpa: 0, size: '2MiB', guestMemfd: 'ram' }],
  };

  test('is asked after each step where the scenario says so', async () => {
    expect((await run(stale)).failures).toBeUndefined();
    const { failures } = await run({ ...stale, check: 'empty' });
    expect(failures).toEqual([expect.objectContaining({ step: 'setMemoryAttributes', path: ['steps', 1] })]);
    expect(failures?.[0].message).toMatch(/^the oracle finds kind-mismatch: /);
  });

  test('can be left out for a variant', async () => {
    const { failures } = await run({ ...stale, check: 'empty', compare: [{ name: 'a', check: 'off' }] });
    expect(failures).toBeUndefined();
  });
});

describe('steps', () => {
  test('know the variant, its kind of VM and the counts of repeats around them', async () => {
    const scenario = small(
      [
        {
          if: "type == 'tdx' || variant == 'b' && kernel == 'linux-6.12'",
          repeat: 2,
          index: 'i',
          steps: [{ repeat: 'i + 1', name: 'touch', access: { gpa: '(i * 2 + index) * 4KiB', kind: 'write' } }],
        },
      ],
      { compare: [{ name: 'a' }, { name: 'b', vm: { kernel: 'linux-6.12' } }] },
    );
    const { variants } = await run(scenario);
    expect(variants.map(({ counters }) => counters.pages_4k)).toEqual([0, 3]);
  });

  test('name what later ones use', async () => {
    const scenario: Scenario = {
      name: 'named',
      vm: { type: 'sw-protected', memory: '2MiB' },
      steps: [
        { createGuestMemfd: { size: '2MiB' }, as: 'ram' },
        {
          setUserMemoryRegion2: {
            slot: 0,
            flags: 'GUEST_MEMFD',
            guestPhysAddr: 0,
            memorySize: '2MiB',
            userspaceAddr: '16TiB',
            guestMemfd: 'ram',
          },
        },
        { setMemoryAttributes: { address: 0, size: '2MiB', attributes: 'PRIVATE' } },
        { beginFault: { gpa: 0, kind: 'write', private: true }, as: 'fault' },
        { punchHole: { guestMemfd: 'ram', offset: 0, length: '4KiB' } },
        { finishFault: { fault: 'fault' }, returns: 'retry' },
        { close: { guestMemfd: 'ram' } },
      ],
    };
    expect((await run(scenario)).failures).toBeUndefined();
  });

  test('find the host address behind a guest address', async () => {
    const scenario = small([
      { access: { gpa: '1MiB', kind: 'write' } },
      { madvise: { hva: 'hva(1MiB)', length: '4KiB', advice: 'DONTNEED' } },
    ]);
    expect((await run(scenario)).variants[0].counters.leafs_zapped_direct_4k).toBe(1);
  });
});

describe('parameters', () => {
  const steps: ScenarioStep[] = [{ repeat: 'pages', access: { gpa: 'index * 4KiB', kind: 'write' } }];
  const scenario = small(steps, {
    parameters: { most: 8, pages: { default: 2, min: 1, max: 'most', multipleOf: 2 } },
  });

  test('have their defaults until they are set', async () => {
    const pages = async (set?: RunOptions['set']) => (await run(scenario, { set })).variants[0].counters.pages_4k;
    expect([await pages(), await pages({ pages: 4 }), await pages({ pages: '16 / 2' })]).toEqual([2, 4, 8]);
  });

  test('can differ between variants, and are not set over them then', async () => {
    const compared: Scenario = { ...scenario, compare: [{ name: 'a', set: { pages: 4 } }, { name: 'b' }] };
    expect((await run(compared)).variants.map(({ counters }) => counters.pages_4k)).toEqual([4, 2]);
    expect(await refusal(compared, { set: { pages: 6 } })).toMatch(/parameter pages differs between the variants/);
  });

  test.each<[RunOptions['set'], RegExp]>([
    [{ pages: 0 }, /parameter pages: 0 is too small; it must be at least 1, at most 8, a multiple of 2$/],
    [{ pages: 10 }, /is too large/],
    [{ pages: 3 }, /does not fit/],
    [{ pages: true }, /is no number/],
    [{ pages: 'two' }, /is no quantity: unknown name 'two'/],
    [{ page: 1 }, /no parameter is named 'page'; did you mean pages\? \(its parameters are most, pages\)/],
  ])('%j is refused', async (set, message) => {
    expect(await refusal(scenario, { set })).toMatch(message);
  });
});

describe('a scenario that can’t be run is refused with its place', () => {
  test.each<[string, Scenario, RegExp]>([
    [
      'a value of the wrong kind',
      small([{ access: { gpa: 'variant', kind: 'read' } }]),
      /^steps\.0\.access\.gpa: gpa: needs a whole number/,
    ],
    [
      'what KVM refuses',
      small([{ setMemoryAttributes: { address: 1, size: 1, attributes: 0 } }]),
      /^steps\.0\.setMemoryAttributes: .*EINVAL/,
    ],
    [
      'a slot KVM refuses',
      { ...small([{ run: {} }]), memory: [{ slot: 0, gpa: 1, size: '2MiB' }] },
      /^memory\.0: .*EINVAL/,
    ],
    [
      'a counter that is none',
      small([{ run: {}, expect: { pages4k: 0 } }]),
      /^steps\.0\.expect\.pages4k: no counter is named 'pages4k'; did you mean pages_4k/,
    ],
    [
      'a vcpu that is none',
      small([{ run: { vcpu: 3 } }]),
      /^steps\.0\.run\.vcpu: vcpu: there is no vcpu 3, the VM has 1$/,
    ],
    [
      'a name its step did not make',
      small([{ createGuestMemfd: { size: 4096 }, as: 'f', if: false }, { close: { guestMemfd: 'f' } }]),
      /^steps\.1\.close\.guestMemfd: .*was skipped$/,
    ],
    [
      'a host address of no slot',
      small([{ madvise: { hva: 'hva(1TiB)', length: 4096, advice: 'DONTNEED' } }]),
      /^steps\.0: hva\(\): no slot of the memory section holds 1TiB$/,
    ],
    ['no capacity', { name: 'x', vm: {}, steps: [{ run: {} }] }, /^vm: vm needs the field 'memory'/],
    [
      'a capacity beyond all',
      { name: 'x', vm: { memory: '8PiB' }, steps: [{ run: {} }] },
      /^vm: the VM can't be created: /,
    ],
    [
      'too many repeats',
      small([{ repeat: 2, steps: [{ if: 'index == 1', repeat: 999_999, run: {} }] }]),
      /^steps\.0\.steps\.0\.repeat: the run takes more than 1000000 steps/,
    ],
    [
      'a requirement that does not hold',
      small([{ run: {} }], { require: [{ that: '1 > 2', say: 'never' }] }),
      /^require\.0\.that: never/,
    ],
  ])('%s', async (_, scenario, message) => {
    expect(await refusal(scenario)).toMatch(message);
  });

  test.each([undefined, null, 3, [], {}])('%j is no scenario', async (value) => {
    await expect(runScenario(value as unknown as Scenario)).rejects.toThrow(ScenarioError);
  });
});

test('a refusal comes with what failed before it', async () => {
  // The guest touches a page it has not accepted: that kills the TD, and KVM refuses what follows.
  const scenario: Scenario = {
    name: 'dead',
    vm: { type: 'tdx', memory: '2MiB' },
    memory: [{ slot: 0, gpa: 0, size: '2MiB', guestMemfd: 'ram' }],
    steps: [
      { setMemoryAttributes: { address: 0, size: '2MiB', attributes: 'PRIVATE' } },
      { preFaultMemory: { gpa: 0, size: '4KiB' } },
      { access: { gpa: 0, kind: 'read' } },
      { setMemoryAttributes: { address: 0, size: '2MiB', attributes: 0 } },
    ],
    compare: [{ name: 've', vm: { septVeDisable: false } }, { name: 'kills' }],
  };
  const error: unknown = await run(scenario).catch((reason) => reason);
  expect(error).toBeInstanceOf(ScenarioError);
  expect((error as ScenarioError).faults.map(({ message }) => message)).toEqual([
    "ve, access: access returned 've', not 'done'",
    expect.stringMatching(/^kills, access: access returned 'error' \(EIO\), not 'done'$/),
    expect.stringMatching(/^kills: refused: .*EIO/),
  ]);
});

test('a run leaves no guest_memfd open', async () => {
  const made: Vm[] = [];
  const scenario: Scenario = {
    ...small([{ run: {} }]),
    vm: { type: 'snp', memory: '2MiB' },
    memory: [{ slot: 0, gpa: 0, size: '2MiB', guestMemfd: 'ram' }],
  };
  await run(scenario, {
    createVm: async (options) => {
      const vm = await onThisBuild(options);
      made.push(vm);
      return vm;
    },
  });
  expect(() => made[0].vcpus[0].run()).toThrow();
});

test('the scenarios that come with the package are known by name', () => {
  const files = readdirSync(new URL('../../scenarios/', import.meta.url)).map((file) => file.replace(/\.yaml$/, ''));
  expect(Object.keys(scenarios).sort()).toEqual(files.sort());
  expect(scenarioNamed('convert-already-private')).toBe(scenarios['convert-already-private']);
  expect(() => scenarioNamed('constructor')).toThrow(
    /no built-in scenario has this name; there are .*convert-already-private/,
  );
});
