import { defineConfig } from 'vitest/config';

// The same tests run on the debug and on the release engine; test/support reads EPTSIM_BUILD. Those of the reference model
// and of the built command choose no engine and run once.
const withoutEngine = ['test/model/**/*.test.ts', 'test/unit/cli-*.test.ts'];
const onThePackage = ['test/package/**/*.test.ts', 'test/browser/**/*.test.ts'];
const onBothBuilds = ['debug', 'release'].map((build) => ({
  extends: true as const,
  test: {
    name: build,
    include: ['test/**/*.test.ts'],
    exclude: [...withoutEngine, ...onThePackage],
    env: { EPTSIM_BUILD: build },
  },
}));

export default defineConfig({
  test: {
    globalSetup: ['test/support/build-first.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 2,
    passWithNoTests: false,
    projects: [
      ...onBothBuilds,
      { extends: true as const, test: { name: 'once', include: withoutEngine } },
      {
        extends: true as const,
        test: {
          name: 'package',
          include: onThePackage,
          testTimeout: 180_000,
        },
      },
    ],
  },
});
