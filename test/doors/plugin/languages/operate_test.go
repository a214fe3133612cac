package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/auto"
)

// TestMain does with the stack of the program beside it what `pulumi COMMAND` does: COMMAND DIRECTORY.
func TestMain(*testing.M) {
	done, err := operate(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(done); err != nil {
		os.Exit(1)
	}
}

type result struct {
	Counts  map[string]int `json:"counts"`
	Outputs map[string]any `json:"outputs"`
	Text    string         `json:"text"`
}

func operate(command, directory string) (result, error) {
	ctx := context.Background()
	workspace, err := auto.NewLocalWorkspace(ctx, auto.WorkDir(directory), auto.Program(program))
	if err != nil {
		return result{}, err
	}
	stack, err := auto.SelectStack(ctx, "dev", workspace)
	if err != nil {
		return result{}, err
	}
	if err := os.Chdir(directory); err != nil {
		return result{}, err
	}
	switch command {
	case "preview":
		done, err := stack.Preview(ctx)
		counts := map[string]int{}
		for kind, count := range done.ChangeSummary {
			counts[string(kind)] = count
		}
		return result{counts, map[string]any{}, done.StdOut + done.StdErr}, err
	case "up":
		done, err := stack.Up(ctx)
		outputs := map[string]any{}
		for name, output := range done.Outputs {
			outputs[name] = output.Value
		}
		return result{changes(done.Summary), outputs, done.StdOut + done.StdErr}, err
	case "destroy":
		done, err := stack.Destroy(ctx)
		return result{changes(done.Summary), map[string]any{}, done.StdOut + done.StdErr}, err
	}
	return result{}, fmt.Errorf("%q is no command", command)
}

func changes(summary auto.UpdateSummary) map[string]int {
	if summary.ResourceChanges == nil {
		return map[string]int{}
	}
	return *summary.ResourceChanges
}
