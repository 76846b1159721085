import { describe, expect, test } from 'vitest';
import { InputError, parseScenarioText } from '../../src/cli/scenario-file.ts';

const parse = (text: string) => parseScenarioText(text, 'f');

/** What parsing `text` is refused with. */
function refusal(text: string): string {
  try {
    parse(text);
  } catch (error) {
    if (error instanceof InputError) return error.message;
    throw error;
  }
  throw new Error('it was not refused');
}

describe('a scenario file', () => {
  test('is YAML or JSON, with whole numbers of any size', () => {
    const scenario = { name: 'x', vm: { memory: 4096, maxphyaddr: 2n ** 60n }, share: 0.5, on: true, none: null };
    const yaml = 'name: x\nvm: { memory: 0x1000, maxphyaddr: 1152921504606846976 }\nshare: 0.5\non: true\nnone:\n';
    const json =
      '{"name": "x",\n\t"vm": {"memory": 4096, "maxphyaddr": 1152921504606846976}, "share": 0.5, "on": true, "none": null}';
    expect(parse(yaml).scenario).toEqual(scenario);
    expect(parse(json).scenario).toEqual(scenario);
  });

  test('may repeat a part by an alias', () => {
    expect(parse('a: &a { b: 1 }\nc: [*a, *a]\n').scenario).toEqual({ a: { b: 1 }, c: [{ b: 1 }, { b: 1 }] });
  });

  test('keeps a name such as __proto__ an ordinary name', () => {
    const { scenario } = parse('__proto__: { polluted: 1 }\n');
    expect(Object.keys(scenario as object)).toEqual(['__proto__']);
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
  });
});

describe('a place in the value has line and column', () => {
  const text = 'name: x\nsteps:\n  - run: {}\n  - &a\n    access:\n      gpa: 0\n  - *a\n';
  const { place } = parse(text);
  test.each<[(string | number)[], boolean, string]>([
    [[], false, 'f:1:1'],
    [['name'], false, 'f:1:7'],
    [['name'], true, 'f:1:1'],
    [['steps', 0, 'run'], true, 'f:3:5'],
    [['steps', 1, 'access', 'gpa'], false, 'f:6:12'],
    [['steps', 2, 'access', 'gpa'], false, 'f:6:12'],
    [['steps', 1, 'access', 'missing'], false, 'f:6:7'],
    [['steps', 9], false, 'f:3:3'],
  ])('%j, key %s: %s', (path, atKey, expected) => {
    expect(place(path, atKey)).toBe(expected);
  });
});

describe('a text that is no scenario file is refused with line and column', () => {
  test.each<[string, string | [string, number], RegExp]>([
    ['nothing', '', /^f:1:1: the file is empty/],
    ['a comment alone', '# hello\n', /^f:\d+:1: the file is empty/],
    ['a truncated flow mapping', 'name: x\nvm: { memory: 4096\nsteps: []\n', /^f:3:1: /],
    ['a truncated string', 'name: "x\n', /^f:2:1: Missing closing/],
    ['truncated JSON', '{"name": "x", "vm": {', /^f:1:\d+: /],
    ['a tab for indentation', 'vm:\n\tmemory: 1\n', /^f:2:1: Tabs/],
    ['a name given twice', 'name: x\nname: y\n', /^f:2:1: 'name' stands twice/],
    ['two documents', 'name: x\n---\nname: y\n', /^f:2:1: a second document/],
    ['an unknown tag', 'name: !!js/function x\n', /^f:1:7: Unresolved tag/],
    ['an alias without an anchor', 'name: *x\n', /^f:1:7: no anchor is named 'x'/],
    ['a list for a name', '? [a]\n: 1\n', /^f:1:3: a name must be a plain word/],
    ['an alias of itself', 'a: &a [*a]\n', /^f:1:\d+: nests deeper than 32/],
    ['deep flow nesting', ['[', 100_000], /^f:1:\d+: nests deeper than 32/],
    ['deep block nesting', ['- ', 50_000], /^f:1:\d+: nests deeper than 32/],
    ['33 levels', `${'['.repeat(34)}${']'.repeat(34)}`, /^f:1:34: nests deeper than 32/],
    [
      'aliases of aliases',
      [
        'a0: &a0 [x, x, x, x]',
        ...Array.from({ length: 12 }, (_, n) => `a${n + 1}: &a${n + 1} [${`*a${n}, `.repeat(8)}]`),
      ].join('\n'),
      /more than 200000 values, aliases expanded/,
    ],
  ])('%s', (_, text, message) => {
    expect(refusal(typeof text === 'string' ? text : text[0].repeat(text[1]))).toMatch(message);
  });
});

test('eight times the names take no sixty-four times the time', () => {
  const milliseconds = (names: number): number => {
    const text = Array.from({ length: names }, (_, index) => `k${index}: &k${index} 1`).join('\n');
    const start = performance.now();
    parse(text);
    return performance.now() - start;
  };
  const few = milliseconds(4000);
  expect(milliseconds(32_000)).toBeLessThan(32 * few);
});
