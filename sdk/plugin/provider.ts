import * as pulumi from "@pulumi/pulumi";
import type { ProviderInputs } from "../inputs.ts";

export type ProviderArgs = ProviderInputs;

/** A provider with a configuration of its own, for the resources that name it in their `provider` option. */
export class Provider extends pulumi.ProviderResource {
  static readonly __pulumiType = "cloudlet";

  constructor(name: string, args: ProviderArgs = {}, options?: pulumi.ResourceOptions) {
    const { connection, concurrency, operationTimeout, ...texts } = args;
    super(
      "cloudlet",
      name,
      {
        ...texts,
        // pulumi passes whatever is no text as JSON
        connection: connection === undefined ? undefined : pulumi.secret(connection).apply((given) => JSON.stringify(given)),
        concurrency: asText(concurrency),
        operationTimeout: asText(operationTimeout),
      },
      options,
    );
  }
}

function asText(value: pulumi.Input<number> | undefined): pulumi.Output<string> | undefined {
  return value === undefined ? undefined : pulumi.output(value).apply(String);
}
