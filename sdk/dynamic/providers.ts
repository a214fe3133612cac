import type * as pulumi from "@pulumi/pulumi";
import type * as Hooks from "../../provider/doors/dynamic/hooks.ts";

declare const require: (module: "pulumi-cloudlet/hooks") => typeof Hooks;

/**
 * Pulumi stores the text of these objects with every resource. It captures nothing and only loads the installed package,
 * so the text stays the same between releases, and a fix reaches refresh and delete of what older releases made.
 */
export const providers = {
  EdgeCluster: providerOf("cloudlet:index:EdgeCluster"),
  Node: providerOf("cloudlet:index:Node"),
  Hypervisor: providerOf("cloudlet:index:Hypervisor"),
  Cloudlet: providerOf("cloudlet:index:Cloudlet"),
  BaseImage: providerOf("cloudlet:index:BaseImage"),
  Overlay: providerOf("cloudlet:index:Overlay"),
  Volume: providerOf("cloudlet:index:Volume"),
};

function providerOf(token: string): pulumi.dynamic.ResourceProvider {
  const provider = {
    token,
    // runs before any other hook, and must add them before its first await: pulumi hands the object out at once
    configure() {
      Object.assign(this, require("pulumi-cloudlet/hooks").hooksOf(this.token));
      return Promise.resolve();
    },
  };
  // create and the others are there once configure has run
  return provider as object as pulumi.dynamic.ResourceProvider;
}
