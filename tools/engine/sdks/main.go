// Command sdks writes the SDKs for Python and Go that follow from schema.json: sdks SCHEMA DIRECTORY.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	gogen "github.com/pulumi/pulumi/pkg/v3/codegen/go"
	"github.com/pulumi/pulumi/pkg/v3/codegen/python"
	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// what the files say they were made by
const tool = "tools/engine/sdks"

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: sdks SCHEMA DIRECTORY"))
	}
	if err := generate(os.Args[1], os.Args[2]); err != nil {
		fail(err)
	}
}

func generate(schemaFile, directory string) error {
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		return err
	}
	var spec schema.PackageSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", schemaFile, err)
	}
	// nothing in the schema refers to another package, so nothing is ever loaded
	pkg, diagnostics, err := schema.BindSpec(spec, schema.NewCachedLoader(nil), schema.ValidationOptions{})
	if err != nil {
		return err
	}
	if len(diagnostics) > 0 {
		return fmt.Errorf("%s: %w", schemaFile, diagnostics)
	}
	pythonFiles, err := python.GeneratePackage(tool, pkg, nil, nil)
	if err != nil {
		return err
	}
	// the project's file names it at the top of the folder
	pythonFiles["README.md"] = pythonFiles["pulumi_cloudlet/README.md"]
	goFiles, err := gogen.GeneratePackage(tool, pkg, nil)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(directory, "python"), pythonFiles); err != nil {
		return err
	}
	return write(filepath.Join(directory, "go"), goFiles)
}

func write(directory string, files map[string][]byte) error {
	for name, text := range files {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "sdks:", err)
	os.Exit(1)
}
