"""The services of the appliance: api, agent, controller. One package, one image, one verb each."""
