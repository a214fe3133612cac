// Pulumi provider for edge gateways and the cloudlets that move between them
package cloudlet
