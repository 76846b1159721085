import { describe, expect, test } from 'vitest';
import { checkScenario } from '../../src/scenario/check.ts';

const step = { run: {} };
const good = { name: 'x', vm: { memory: '1MiB' }, steps: [step] };
const withSteps = (...steps: unknown[]): unknown => ({ ...good, steps });
const slot = { slot: 0, gpa: 0, size: '1MiB', guestMemfd: 'ram' };

/** The faults as `path: message`, the path's parts joined by dots. */
function faultsOf(scenario: unknown): string[] {
  return checkScenario(scenario).map(({ path, message }) => `${path.join('.')}: ${message}`);
}

describe('a well-formed scenario has no fault', () => {
  test.each<[string, unknown]>([
    ['the smallest', good],
    ['a method with nothing after its colon', withSteps({ run: null })],
    ['a method with its handle', withSteps({ 'host.madvise': { hva: 0, length: 4096, advice: 'DONTNEED' } })],
    [
      'parameters, let and require',
      {
        ...good,
        parameters: {
          size: '1MiB',
          half: { default: 'size / 2', min: 0, max: 'size' },
          leaf: { default: '4K', oneOf: ['4K', '2M'] },
        },
        let: { twice: 'half * 2' },
        require: [{ that: 'twice == size', say: 'no' }],
        vm: { memory: 'size', type: "leaf == '4K' ? 'tdx' : 'snp'", quirks: { slotZapAll: false } },
      },
    ],
    ['a guest_memfd named by a slot', { ...good, memory: [slot], steps: [{ close: { guestMemfd: 'ram' } }] }],
    [
      'a guest_memfd named by a step',
      withSteps({ createGuestMemfd: { size: 4096 }, as: 'f' }, { close: { guestMemfd: 'f' } }),
    ],
    [
      'a fault in two steps',
      withSteps(
        { beginFault: { gpa: 0, kind: 'read' }, as: 'fault' },
        { finishFault: { fault: 'fault' }, returns: 'fixed' },
      ),
    ],
    [
      'nested repeats',
      withSteps({
        repeat: 2,
        index: 'i',
        steps: [{ repeat: 'i + 1', access: { gpa: '(i + index) * 4096', kind: 'write' } }],
      }),
    ],
    [
      'variants',
      {
        ...good,
        parameters: { n: 1 },
        compare: [
          { name: 'a', vm: { type: 'tdx' }, set: { n: 2 }, check: 'empty', expect: { pages_4k: '>= n' } },
          { name: 'b' },
        ],
      },
    ],
    ['a step for some variants', withSteps({ if: "type == 'tdx' && variant != 'a'", accept: { gpa: 0, size: 4096 } })],
  ])('%s', (_, scenario) => {
    expect(faultsOf(scenario)).toEqual([]);
  });
});

describe('a fault is named with its place', () => {
  const rows: [unknown, string][] = [
    [undefined, ': the scenario must be a mapping, not undefined'],
    [[], ': the scenario must be a mapping, not a list'],
    [{}, ": the scenario needs the field 'name'"],
    [{ ...good, stepps: [] }, "stepps: the scenario has no field 'stepps'; did you mean steps?"],
    [{ ...good, name: 3 }, "name: the scenario's name must be a text, not 3"],
    [{ ...good, name: 'x'.repeat(101) }, "name: the scenario's name has 101 characters, the limit is 100"],
    [{ ...good, check: 'full' }, "check: check: 'full' is none of empty, off"],
    [{ ...good, vm: { memory: -1 } }, 'vm.memory: memory: needs a whole number from 0 to 2^64-1, not -1'],
    [
      { ...good, vm: { memory: 2n ** 64n } },
      'vm.memory: memory: needs a whole number from 0 to 2^64-1, not 18446744073709551616',
    ],
    [{ ...good, vm: { memory: Number.NaN } }, 'vm.memory: memory: needs a number or an expression, not NaN'],
    [{ ...good, vm: { memory: 'sise' } }, "vm.memory: memory: unknown name 'sise' (known: none)"],
    [{ ...good, vm: { typ: 'tdx' } }, "vm.typ: vm has no field 'typ'; did you mean type?"],
    [
      { ...good, vm: { type: 'tdxx' } },
      "vm.type: type: 'tdxx' is none of default, sw-protected, tdx, snp; did you mean tdx?",
    ],
    [{ ...good, vm: { quirks: { slotZapAll: 1 } } }, 'vm.quirks.slotZapAll: slotZapAll: needs true or false, not 1'],
    [{ ...good, vm: { quirks: true } }, 'vm.quirks: quirks must be a mapping, not true'],
    [{ ...good, memory: [{ slot: 0, gpa: 0 }] }, "memory.0: a slot needs the field 'size'"],
    [
      { ...good, memory: [{ ...slot, host: 'hugetlb' }] },
      "memory.0.host: host: 'hugetlb' is none of anon4k, thp, hugetlb2m, hugetlb1g, shmem, anon; did you mean hugetlb2m or hugetlb1g?",
    ],
    [
      { ...good, memory: [{ ...slot, guestMemfd: 'my ram' }] },
      "memory.0.guestMemfd: the name 'my ram' must be letters, digits and _ and not start with a digit",
    ],
    [
      { ...good, parameters: { 'a-b': 1 } },
      "parameters.a-b: the parameter name 'a-b' must be letters, digits and _ and not start with a digit",
    ],
    [
      { ...good, parameters: { PRIVATE: 1 } },
      "parameters.PRIVATE: the parameter name 'PRIVATE' has a meaning of its own in expressions; take another",
    ],
    [{ ...good, parameters: { a: {} } }, "parameters.a: the parameter needs the field 'default'"],
    [
      { ...good, parameters: { a: { default: '3M', oneOf: ['4K', '2M'] } } },
      "parameters.a.default: default: '3M' is none of 4K, 2M",
    ],
    [
      { ...good, parameters: { a: { default: '4K', oneOf: ['4K'], min: 1 } } },
      'parameters.a.min: a parameter with oneOf has no min',
    ],
    [{ ...good, parameters: { a: 'b', b: 1 } }, "parameters.a: a: unknown name 'b' (known: none)"],
    [{ ...good, parameters: { a: 1 }, let: { a: 2 } }, "let.a: the name 'a' is taken already"],
    [{ ...good, require: [{ that: true }] }, "require.0: a requirement needs the field 'say'"],
    [{ ...good, require: [{ that: 1, say: 'x' }] }, 'require.0.that: that: needs true or false, not 1'],
    [{ ...good, steps: {} }, 'steps: steps must be a list, not a mapping'],
    [{ ...good, steps: [] }, 'steps: steps is empty'],
    [withSteps('run'), "steps.0: a step must be a mapping, not 'run'"],
    [withSteps({}), 'steps.0: a step holds one method or a list of steps, this one has neither'],
    [
      withSteps({ run: {}, destroy: {} }),
      'steps.0: a step holds one method or a list of steps, this one has run and destroy',
    ],
    [withSteps({ acess: {} }), "steps.0.acess: a step has no method or field 'acess'; did you mean access?"],
    [
      withSteps({ 'vcpu.madvise': {} }),
      "steps.0.vcpu.madvise: a step has no method or field 'vcpu.madvise' (methods and fields: docs/scenario-format.md)",
    ],
    [
      withSteps({ setMemoryAttributes: { address: 0, size: 4096 } }),
      "steps.0.setMemoryAttributes: setMemoryAttributes needs the field 'attributes'",
    ],
    [
      withSteps({ setMemoryAttributes: { adress: 0, address: 0, size: 1, attributes: 8 } }),
      "steps.0.setMemoryAttributes.adress: setMemoryAttributes has no field 'adress'; did you mean address?",
    ],
    [
      withSteps({ access: { gpa: 0, kind: 'raed' } }),
      "steps.0.access.kind: kind: 'raed' is none of read, write, exec; did you mean read?",
    ],
    [withSteps({ access: { gpa: '1 +', kind: 'read' } }), "steps.0.access.gpa: gpa: '1 +' ends too early"],
    [
      withSteps({ access: { gpa: 0.5, kind: 'read' } }),
      'steps.0.access.gpa: gpa: needs a whole number from 0 to 2^64-1, not 0.5',
    ],
    [
      withSteps({ access: { gpa: 0, kind: 'read', private: 'yes' } }),
      "steps.0.access.private: private: unknown name 'yes' (known: type, variant, kernel, filterForm)",
    ],
    [
      withSteps({ close: { guestMemfd: 'ram' } }),
      "steps.0.close.guestMemfd: guestMemfd: no guest_memfd is named 'ram' (named: none so far)",
    ],
    [withSteps({ beginFault: { gpa: 0, kind: 'read' } }), "steps.0: beginFault needs 'as', the name finishFault takes"],
    [withSteps({ run: {}, as: 'x' }), 'steps.0.as: run returns nothing that takes a name'],
    [withSteps({ run: {}, returns: 1 }), 'steps.0.returns: run returns nothing'],
    [withSteps({ run: {}, refused: 22 }), 'steps.0.refused: refused: must be an errno such as EINVAL, not 22'],
    [withSteps({ run: {}, index: 'i' }), 'steps.0.index: index names the count of a repeat, and this step has none'],
    [
      withSteps({ run: {}, measure: true }, { run: {}, measure: true }),
      'steps.1.measure: another step is measured already',
    ],
    [
      withSteps({ steps: [{ run: {}, measure: true }] }),
      'steps.0.steps.0.measure: measure belongs to a step of the outer list, not to one inside a group',
    ],
    [withSteps({ steps: [step], returns: 1 }), 'steps.0.returns: returns belongs to a method, not to a list of steps'],
    [
      withSteps({ run: {}, expect: { pages_4k: 'many' } }),
      "steps.0.expect.pages_4k: pages_4k: unknown name 'many' (known: type, variant, kernel, filterForm)",
    ],
    [withSteps({ enableCap: { cap: 1, args: 3 } }), 'steps.0.enableCap.args: args must be a list, not 3'],
    [{ ...good, compare: [] }, 'compare: compare is empty'],
    [{ ...good, compare: [{ vm: {} }] }, "compare.0: a variant needs the field 'name'"],
    [{ ...good, compare: [{ name: 'a' }, { name: 'a' }] }, "compare.1.name: two variants are named 'a'"],
    [{ ...good, compare: [{ name: 'a', set: { n: 1 } }] }, "compare.0.set.n: no parameter is named 'n' (known: none)"],
  ];
  test.each(rows.map(([scenario, fault]) => [fault, scenario]))('%s', (fault, scenario) => {
    expect(faultsOf(scenario)).toContain(fault);
  });
});

describe('a scenario beyond the limits is refused', () => {
  const nested = (depth: number): unknown => (depth === 0 ? step : { steps: [nested(depth - 1)] });
  test.each<[string, unknown, RegExp]>([
    ['nesting', withSteps(nested(9)), /steps nest deeper than 8/],
    ['steps', withSteps(...Array.from({ length: 10_001 }, () => step)), /10001 entries, the limit is 10000/],
    [
      'steps in groups',
      withSteps(...Array.from({ length: 6 }, () => ({ steps: Array.from({ length: 2000 }, () => step) }))),
      /more than 10000 steps/,
    ],
    [
      'variants',
      { ...good, compare: Array.from({ length: 65 }, (_, index) => ({ name: `v${index}` })) },
      /65 entries, the limit is 64/,
    ],
    [
      'parameters',
      { ...good, parameters: Object.fromEntries(Array.from({ length: 257 }, (_, index) => [`p${index}`, 1])) },
      /257 parameters, the limit is 256/,
    ],
  ])('%s', (_, scenario, message) => {
    expect(faultsOf(scenario).join('\n')).toMatch(message);
  });

  test('no more than 20 faults are listed', () => {
    expect(faultsOf(withSteps(...Array.from({ length: 50 }, () => ({})))).length).toBe(20);
  });

  test('a mapping that holds itself ends at the nesting limit', () => {
    const circle: Record<string, unknown> = { repeat: 1 };
    circle.steps = [circle];
    expect(faultsOf(withSteps(circle)).join('\n')).toMatch(/nest deeper/);
  });
});
