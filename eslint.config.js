import tseslint from "typescript-eslint";

// only what readers feel; everything else is the formatter's job
export default tseslint.config(
  { ignores: ["dist/", "node_modules/", ".lab/", "**/*.js"] },
  {
    files: ["**/*.ts"],
    languageOptions: {
      parser: tseslint.parser,
      parserOptions: { projectService: { allowDefaultProject: ["vitest.config.ts"] }, tsconfigRootDir: import.meta.dirname },
    },
    plugins: { "@typescript-eslint": tseslint.plugin },
    rules: {
      "@typescript-eslint/no-floating-promises": "error",
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/consistent-type-imports": "error",
      "@typescript-eslint/no-explicit-any": "error",
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "max-params": ["error", 3],
      "max-lines": ["error", { max: 400 }],
      "max-lines-per-function": ["error", { max: 50, skipBlankLines: true, skipComments: true }],
      "no-restricted-syntax": ["error", { selector: "ExportDefaultDeclaration", message: "export by name" }],
    },
  },
  // a describe block is a function of any length; a tool's configuration must be a default export
  { files: ["test/**/*.ts"], rules: { "max-lines-per-function": "off" } },
  // generated; as long as the schemas are
  { files: ["sdk/types.ts"], rules: { "max-lines": "off" } },
  { files: ["vitest.config.ts"], rules: { "no-restricted-syntax": "off" } },
);
