// Command compose loads a compose file as `docker compose config --quiet` does, with the library that it does it with:
// the schema of the specification, interpolation, env files, profiles, and what services name of each other.
//
//	compose FILE [PROFILE ...]
//
// Variables are those of the environment and of a .env beside the file. Prints the project as YAML; exit 1: why not.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	project, err := load(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(project)
}

func load(file string, profiles []string) ([]byte, error) {
	options, err := cli.NewProjectOptions(
		[]string{file},
		cli.WithOsEnv,
		cli.WithEnvFiles(),
		cli.WithDotEnv,
		cli.WithDefaultProfiles(profiles...),
	)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalYAML()
}
