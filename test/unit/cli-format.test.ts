import { describe, expect, test } from 'vitest';
import { formatDuration, formatQuantity, formatResult, wrap } from '../../src/cli/format.ts';
import type { ScenarioResult, StepResult } from '../../src/index.ts';

const losses = { privatePagesLost: 0, pagesToAccept: 0, gfnsZappedOutside: 0, staleSharedLeaves: 0 };

function result(names: string[]): ScenarioResult {
  const step = (name: string, zapped: number, lost: number): StepResult => ({
    name,
    counters: { leafs_zapped_direct_4k: zapped, entries_visited: 1234567 },
    losses: { ...losses, privatePagesLost: lost },
  });
  return {
    scenario: 'example',
    parameters: { size: 2 ** 36, leaf: '4K' },
    variants: names.map((name, index) => {
      const measured = step('convert', 131072 + index, index);
      return { ...measured, name, steps: [step('memory', 0, 0), measured, step('destroy', 5, 0)] };
    }),
  };
}

const ESC = String.fromCharCode(27);
const columns = (text: string): number => Math.max(...text.split('\n').map((line) => line.length));

describe('the table of a result', () => {
  test('has a column for each variant and a row for each count', () => {
    const text = formatResult(result(['filtered', 'unfiltered']), { measured: 1, width: 80, color: false });
    expect(text).toContain('example\nsize 64GiB, leaf 4K\n');
    expect(text).toMatch(/^convert +filtered +unfiltered$/m);
    expect(text).toMatch(/^leaves zapped, direct 4K +131,072 +131,073$/m);
    expect(text).toMatch(/^leaves zapped, mirror 4K +0 +0$/m);
    expect(text).not.toMatch(/mirror 1G/);
    expect(text).toMatch(/^private pages lost +0 +1$/m);
    expect(text).toMatch(/^entries visited +1,234,567 +1,234,567$/m);
    expect(text).toMatch(/^then: destroy +filtered +unfiltered$/m);
    expect(text).toMatch(/^mirror: KVM's copy/m);
  });

  test('says so where the counters are those of all steps', () => {
    expect(formatResult(result(['a']), { width: 80, color: false })).toMatch(/^all steps +a$/m);
  });

  test.each([80, 120, 40])('fits %i columns, with further tables where the variants do not', (width) => {
    const names = ['tdx-filtered', 'tdx-unfiltered', 'snp', 'sw-protected', 'a', 'b', 'c', 'd'];
    const text = formatResult(result(names), { measured: 1, width, color: false });
    expect(columns(text)).toBeLessThanOrEqual(width);
    for (const name of names) expect(text).toMatch(new RegExp(`^(convert|then).*\\b${name}\\b`, 'm'));
  });

  test('shows no losses of a guest that is gone', () => {
    const given = result(['a', 'b']);
    given.variants[1].steps[2].losses.privatePagesLost = 7;
    const shown = (last?: number) => formatResult(given, { measured: 1, last, width: 80, color: false });
    expect(shown()).toMatch(/^private pages lost +0 +7$/m);
    expect(shown(2)).not.toMatch(/^private pages lost +0 +7$/m);
  });

  test('has colour only if asked for', () => {
    expect(formatResult(result(['a', 'b']), { measured: 1, width: 80, color: false })).not.toContain(ESC);
    expect(formatResult(result(['a', 'b']), { measured: 1, width: 80, color: true })).toContain(ESC);
  });
});

test.each([
  [0, '0'],
  [1023, '1023'],
  [4096, '4KiB'],
  [4097, '4097'],
  [2 ** 46, '64TiB'],
  [2 ** 50, '1024TiB'],
  [0.5, '0.5'],
  ['2M', '2M'],
])('formatQuantity(%j) is %s', (value, text) => {
  expect(formatQuantity(value)).toBe(text);
});

test('formatDuration() has a unit that fits', () => {
  expect([0.4, 12.3, 999, 3400].map(formatDuration)).toEqual(['0 ms', '12 ms', '999 ms', '3.4 s']);
});

test('wrap() keeps what stands before the first word and indents what follows', () => {
  expect(wrap('  one two three', 9, '    ')).toBe('  one two\n    three');
});
