package main

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/config"
	"pulumi-cloudlet/sdk/go/cloudlet"
)

func main() {
	pulumi.Run(program)
}

func program(ctx *pulumi.Context) error {
	settings := config.New(ctx, "")
	host := pulumi.String(settings.Require("host"))
	kind := settings.Get("kind")
	if kind == "" {
		kind = "kvm"
	}

	// a Debian machine that SSH reaches, as root or as a user with password-less sudo
	gateway, err := cloudlet.NewNode(ctx, "gw1", &cloudlet.NodeArgs{
		Connection: &cloudlet.ConnectionArgs{Host: host},
	})
	if err != nil {
		return err
	}

	// "kvm" runs virtual machines, "lxd" system containers
	hypervisor, err := cloudlet.NewHypervisor(ctx, "hypervisor", &cloudlet.HypervisorArgs{
		Node:        gateway.Name,
		Kind:        pulumi.String(kind),
		Connection:  gateway.Connection,
		NodeAddress: host,
	})
	if err != nil {
		return err
	}

	// the application, and the cloudlet that serves it
	faces, err := cloudlet.NewEdgeCluster(ctx, "faces", &cloudlet.EdgeClusterArgs{
		Application: pulumi.String("face-recognition"),
	})
	if err != nil {
		return err
	}
	server, err := cloudlet.NewCloudlet(ctx, "server", &cloudlet.CloudletArgs{
		Cluster:     faces.Name,
		Application: faces.Application,
		// of another gateway when the subscriber is there: the cloudlet moves with its state
		Hypervisor:  hypervisor.ID(),
		Connection:  gateway.Connection,
		NodeAddress: host,
		Base:        &cloudlet.BaseArgs{File: pulumi.String(settings.Require("image"))},
		Resources:   &cloudlet.ResourcesArgs{Cores: pulumi.Int(1), MemoryMib: pulumi.Int(256)},
		Ports:       cloudlet.CloudletPortArray{&cloudlet.CloudletPortArgs{Port: pulumi.Int(8080)}},
		Ready:       &cloudlet.ReadyArgs{Http: &cloudlet.ReadyHttpArgs{Port: pulumi.Int(8080), Path: pulumi.String("/")}},
	})
	if err != nil {
		return err
	}

	ctx.Export("endpoint", server.Endpoint)
	ctx.Export("status", server.Status)
	return nil
}
