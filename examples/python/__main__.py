import pulumi
import pulumi_cloudlet as cloudlet

config = pulumi.Config()
host = config.require("host")

# a Debian machine that SSH reaches, as root or as a user with password-less sudo
gateway = cloudlet.Node("gw1", connection={"host": host})

# "kvm" runs virtual machines, "lxd" system containers
hypervisor = cloudlet.Hypervisor(
    "hypervisor",
    node=gateway.name,
    kind=config.get("kind", "kvm"),
    connection=gateway.connection,
    node_address=host,
)

# the application, and the cloudlet that serves it
faces = cloudlet.EdgeCluster("faces", application="face-recognition")
server = cloudlet.Cloudlet(
    "server",
    cluster=faces.name,
    application=faces.application,
    hypervisor=hypervisor.id,  # of another gateway when the subscriber is there: the cloudlet moves with its state
    connection=gateway.connection,
    node_address=host,
    base={"file": config.require("image")},
    resources={"cores": 1, "memory_mib": 256},
    ports=[{"port": 8080}],
    ready={"http": {"port": 8080, "path": "/"}},
)

pulumi.export("endpoint", server.endpoint)
pulumi.export("status", server.status)
